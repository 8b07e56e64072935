"""The figures that `benchmarks.paper` reads from its runs, table by table.

A block of columns has systems that were evaluated on the same cases: those of one config, one split, one subset.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from allmrec.core.artifacts import read_manifest
from allmrec.core.workspace import Workspace
from allmrec.evaluation.results import compare
from benchmarks.comparison import beside, difference, rows_by_key, systems_of, verdict
from benchmarks.paper_ablations import ABLATIONS, BESIDE
from benchmarks.paper_layout import HIT, ORDERINGS, name_of
from benchmarks.paper_numbers import ALLMREC, NAMES, SIZES, TABLES, UNTRAINED, Table
from benchmarks.paper_runs import TEACHER, PaperRuns, Source
from benchmarks.paper_transfer import KNOWN_BY_TEXTS, known_by_texts, transferred
from benchmarks.report import Benchmark, Row


@dataclass(frozen=True)
class Request:
    """The command's options."""

    benchmark: Benchmark
    runs: list[PaperRuns]
    systems: tuple[str, ...] | None = None  # rows beside the table's reference; None: all
    seeds: tuple[int, ...] | None = None  # None: each config's own
    users: int = 200  # whose cases are timed

    def seeds_of(self, runs: PaperRuns) -> tuple[int, ...]:
        return self.seeds or (runs.base.seed,)

    def wanted(self, table: str) -> list[str]:
        rows, reference = TABLES[table].rows, TABLES[table].reference
        if unknown := {*(self.systems or ())} - {*rows}:
            raise ValueError(f"--systems {', '.join(sorted(unknown))}: table {table} has {', '.join(rows)}")
        return [name for name in rows if self.systems is None or name in (*self.systems, reference)]


def systems_table(request: Request, table: str) -> None:
    """Tables 1 and 4 to 6: the systems of every config, on every split of the table."""
    wanted = request.wanted(table)
    for runs in request.runs:
        for label, split in TABLES[table].splits.items():
            own = runs.under(label, [*split, *runs.limited(wanted)]) if split else runs
            refuse_without_cases(own.prepared())
            for seed in request.seeds_of(runs):
                measure(request.benchmark, table, own.base.name, own.seeded(seed).sources(wanted), seed)


def refuse_without_cases(workspace: Workspace) -> None:
    """Raises ValueError before hours of training where no user could be tested."""
    if not read_manifest(workspace.evaluation_cases).stats["test"]:
        uri = workspace.storage.uri
        raise ValueError(f"{uri}: its split tests no user (docs/splits.md); name a config of other data")


def sizes(request: Request) -> None:
    """Table 2."""
    for data, counts in SIZES.items():
        request.benchmark.measured({"table": "2", "data": "", "row": f"paper: {data}"}, counts)
    for runs in request.runs:
        stats = read_manifest(runs.prepared().sequences).stats
        counts = {name: stats[name] for name in ("users", "items", "interactions")}
        counts["a user"] = round(counts["interactions"] / max(counts["users"], 1), 2)
        request.benchmark.measured({"table": "2", "data": "", "row": runs.base.name}, counts)


def cross_domain(request: Request) -> None:
    """Table 7: the models of the first config on the catalogue of the second."""
    if len(request.runs) != 2:
        raise ValueError("table 7 takes two configs: --config TRAINED --config OTHER, of another catalogue")
    wanted = request.wanted("7")
    trained, other = request.runs
    for seed in request.seeds_of(trained):
        first = trained.seeded(seed)
        models = first.finished()
        run = transferred(first, other, wanted)
        workspace = run.finished()
        own = {first.teacher: TEACHER, **{system: system for system in systems_of(workspace)}}
        sources = {name: (workspace, own[name]) for name in wanted if name in own}
        for name in KNOWN_BY_TEXTS:
            if name in wanted and name in systems_of(models):
                sources[name] = known_by_texts(name, models, run), TEACHER
        measure(request.benchmark, "7", f"{first.base.name} → {other.base.name}", sources, seed)


def other_teachers(request: Request) -> None:
    """Table 11: teachers, and A-LLMRec over each."""
    wanted = request.wanted("11")
    for runs in request.runs:
        for seed in request.seeds_of(runs):
            seeded, sources = runs.seeded(seed), dict[str, Source]()
            for model in dict.fromkeys(name.removeprefix(f"{ALLMREC}-") for name in wanted):
                workspace = (seeded if model == seeded.teacher else seeded.with_teacher(model)).finished()
                sources |= {model: (workspace, TEACHER), f"{ALLMREC}-{model}": (workspace, ALLMREC)}
            measure(request.benchmark, "11", runs.base.name, sources, seed)


def ablations(request: Request, table: str) -> None:
    """Tables 8 and 9, and training on all items: each row, trained and untrained, and the config's own run."""
    for runs in request.runs:
        for number, seed in enumerate(request.seeds_of(runs)):
            sources = dict[str, Source]()
            for name in request.wanted(table):
                row = runs.row([*ABLATIONS[table][name], f"seed={seed}"])
                sources |= {name: (row, ALLMREC), f"{name}, untrained": (row, UNTRAINED)}
            finished = runs.base.workspace
            if number == 0:
                sources |= {name: (finished, name) for name in BESIDE if name in systems_of(finished)}
            measure(request.benchmark, table, runs.base.name, sources, seed)


def measure(benchmark: Benchmark, table: str, data: str, sources: Mapping[str, Source], seed: int) -> None:
    """Every system of a block beside the paper's numbers, and whether our figures confirm the paper's orderings."""
    paper = TABLES[table]
    for subset, claims in paper.claims.items():
        labels = {"table": table, "data": ", ".join([data] if subset == "all" else [data, subset])}
        for name, source in sources.items():
            numbers = figures(source, subset) | compared(source, paper, sources, subset)
            numbers |= beside(HIT, paper.numbers.get(name), paper.data)
            benchmark.measured({**labels, "row": NAMES.get(name, name), "seed": seed}, numbers)
        for claim in claims:
            if {*claim} <= sources.keys():
                (lower, below), (higher, above) = (sources[name] for name in claim)
                rows = compare(higher.evaluation_results, above, lower.evaluation_results, below)
                numbers = difference(rows, ("random", subset, "hit@1"), "difference")
                ordering = " < ".join(NAMES.get(name, name) for name in claim)
                judge(benchmark, ordering, paper.agreement(claim, subset), {**labels, "seed": seed}, numbers)


def judge(benchmark: Benchmark, ordering: str, paper: tuple[int, int], labels: Row, numbers: Row) -> None:
    """Whether our figures confirm an ordering.

    Args:
        paper: the number of its columns in which the paper's figures agree, and of all columns.
        labels: `table` among them.
        numbers: the difference that the ordering says is above zero, and the half width of its interval.
    """
    found = verdict(numbers.get("difference"), numbers.get("± 95 %, difference"))
    labels = {**labels, "table": name_of(labels["table"], ORDERINGS), "row": ordering}
    benchmark.measured(labels, {**numbers, "in the paper": f"{paper[0]} of {paper[1]}", "here": found})


def figures(source: Source, subset: str) -> Row:
    """Hit@1 of one system by protocol, of a subset of the cases, and the standard error of the first."""
    workspace, system = source
    keys = {HIT: ("random", subset), "cold": ("random", "cold")}
    keys |= {protocol: (protocol, subset) for protocol in ("matched", "swap")}
    rows, found = rows_by_key(workspace), Row()
    for name, (protocol, part) in keys.items():
        row = rows.get((system, protocol, part, "hit@1"))
        if row is not None:
            found |= {name: row["value"]} | ({f"± se, {HIT}": row["stderr"]} if name == HIT else {})
    return found


def compared(source: Source, paper: Table, sources: Mapping[str, Source], subset: str) -> Row:
    """Differences of Hit@1 by user: to the table's reference, and of a trained A-LLMRec to its untrained one.

    Raises:
        ValueError: a workspace has no per-case results of the system.
    """
    (workspace, system), found = source, Row()
    reference = sources.get(paper.reference)
    if reference is not None and (workspace.storage.uri, system) != (reference[0].storage.uri, reference[1]):
        rows = compare(workspace.evaluation_results, system, reference[0].evaluation_results, reference[1])
        name = NAMES.get(paper.reference, paper.reference)
        for what, protocol in ((HIT, "random"), ("matched", "matched")):
            found |= difference(rows, (protocol, subset, "hit@1"), f"{what} - {name}")
    if system == ALLMREC and UNTRAINED in systems_of(workspace):
        rows = compare(workspace.evaluation_results, ALLMREC, workspace.evaluation_results, UNTRAINED)
        found |= difference(rows, ("random", subset, "hit@1"), f"{HIT} - untrained")
    return found
