"""What each part of A-LLMRec is worth: the ablations of the paper's Tables 8 and 9, and training on all items.

    python -m benchmarks.ablations --config jobs/configs/demo.yaml --table 8
    python -m benchmarks.ablations --config jobs/configs/demo.yaml --table 9 --seeds 0,1,2

Needs a finished run (`allmrec run` or `allmrec demo`). Each row of a table is its config with a key or two changed,
trained from there in a run of its own over the same prepared tables and the same teacher; a row whose config is the one
that the run was made with is that run. Beside each row is its untrained one, whose projectors are where Stage-2
started, and each has its difference to the table's first row, paired by user, with the half width of its 95 % interval
("± 95 %"). The models are whatever the config names: figures of stand-ins are not the paper's.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from allmrec.core.artifacts import read_manifest
from allmrec.core.workspace import Workspace
from allmrec.evaluation.results import compare
from benchmarks.report import ROOT, Benchmark, Row
from jobs import bundle, evaluate, train_alignment, train_projection
from jobs.config import Config, load_config
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console
from jobs.runtime.step import execute, resolved

NAME = "ablations"
SHARED = (
    Workspace.items,
    Workspace.sequences,
    Workspace.evaluation_cases,
    Workspace.rejected,
    Workspace.item_text_embeddings,
    Workspace.teacher,
)
STEPS = (train_alignment.STEP, train_projection.STEP, bundle.STEP, evaluate.STEP)
STAGE_1 = ("matching", "item_recon", "text_recon", "rec")
FINE_TUNED = ["alignment.text_encoder=fine-tuned"]


def without(*losses: str) -> list[str]:
    kept = [loss for loss in STAGE_1 if loss not in losses]
    return [*FINE_TUNED, f"alignment.losses=[{', '.join(kept)}]"]


# By table: the row's name in the paper, and the keys that make it.
TABLES: dict[str, dict[str, list[str]]] = {
    "8": {
        "A-LLMRec": FINE_TUNED,
        "w/o L_matching": without("matching"),
        "w/o L_item-recon & L_text-recon": without("item_recon", "text_recon"),
        "w/o L_rec": without("rec"),
        "Freeze SBERT": ["alignment.text_encoder=frozen"],
    },
    "9": {
        "A-LLMRec": [],
        "w/o user representation": ["prompt.user_slot=false"],
        "w/o joint embedding": ["prompt.item_slots=false"],
        # Without the teacher's start, which would be the collaborative knowledge that the row is to lack.
        "random joint embedding": ["projection.item_input=random", "projection.start=ordinary"],
        "MLP-LLM": ["projection.item_input=teacher"],
    },
    "all": {
        "A-LLMRec": [],
        "A-LLMRec_all": ["alignment.targets=all", "projection.targets=all"],
    },
}
TRAINED, UNTRAINED = "a-llmrec", "a-llmrec-untrained"
EVALUATED = [f"evaluation.systems=[{TRAINED}, {UNTRAINED}]", f"evaluation.baseline={UNTRAINED}"]
BESIDE = ("random", "popularity", "teacher", "llm-only")  # of the finished run


def train(config: Config, base: Config, console: Console) -> Workspace:
    """Train and evaluate one row in a fresh workspace, as far as it differs from the finished one. Returns it."""
    workspace, finished = base.workspace, Path(base.workspace_uri)

    def made_with(config: Config, artifact: str) -> bool:
        recorded = read_manifest(workspace.at(artifact)).config
        return recorded == resolved(config, tuple(section for section in recorded if section != "seed"))

    kept = made_with(config, Workspace.alignment)
    if kept and made_with(config, Workspace.projectors) and made_with(base, Workspace.evaluation):
        return workspace
    folder = Path(config.workspace_uri)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for artifact in (*SHARED, Workspace.alignment) if kept else SHARED:
        (folder / artifact).symlink_to((finished / artifact).resolve())
    for step in (train_projection.STEP, bundle.STEP, evaluate.STEP) if kept else STEPS:
        execute(step, config, console)
    return config.workspace


def measured(workspace: Workspace, system: str, first: Workspace) -> Row:
    """Figures of one system of a row's workspace, and its differences by user.

    Args:
        first: workspace of the table's first row.

    Raises:
        ValueError: a workspace has no per-case results of the system.
    """
    numbers = figures(json.loads(workspace.storage.read("metrics.json")), system)
    results = workspace.evaluation_results
    if (results.uri, system) != (first.evaluation_results.uri, TRAINED):
        rows = compare(results, system, first.evaluation_results, TRAINED)
        numbers |= difference(rows, "random", "Hit@1 - first") | difference(rows, "matched", "matched - first")
    if system == TRAINED:
        numbers |= difference(compare(results, system, results, UNTRAINED), "random", "Hit@1 - untrained")
    return numbers


def difference(rows: list[Row], protocol: str, name: str) -> Row:
    """Of Hit@1 over all users, and the half width of its 95 % interval; nothing where the protocol has no pairs."""
    for row in rows:
        found = [row[key] for key in ("protocol", "subset", "metric")] == [protocol, "all", "hit@1"]
        if found and row["high"] is not None:
            return {name: row["difference"], f"± 95 %, {name}": row["high"] - row["difference"]}
    return {}


def figures(metrics: list[Row], system: str) -> Row:
    """Hit@1 by protocol and subset of one system, and the standard error of the first."""
    keys = {
        "Hit@1": ("random", "all"),
        "matched": ("matched", "all"),
        "swap": ("swap", "all"),
        "cold": ("random", "cold"),
    }
    found: dict[str, Any] = {}
    for name, (protocol, subset) in keys.items():
        for row in metrics:
            if [row[key] for key in ("system", "protocol", "subset", "metric")] == [system, protocol, subset, "hit@1"]:
                found |= {name: row["value"]} | ({"± se": row["stderr"]} if name == "Hit@1" else {})
    return found


def main(
    config: Annotated[Path, typer.Option(help="YAML file of the trained run")] = Path("jobs/configs/demo.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="path.to.key=value, for every row")] = None,
    table: Annotated[str, typer.Option(help=f"one of {', '.join(TABLES)}")] = "9",
    rows: Annotated[
        str | None, typer.Option(help="names of rows, by commas, beside the table's first; default: all")
    ] = None,
    seeds: Annotated[str, typer.Option(help="by commas: of Stage-1 and Stage-2; tables and teacher stay")] = "0",
    root: Annotated[Path, typer.Option(help="where results and the rows' runs go")] = ROOT,
    log_json: bool = False,
) -> None:
    """Train and evaluate the rows of an ablation table."""
    console = Console(log_json)
    benchmark = Benchmark(f"{NAME}-{table}", console, {"config": str(config), "table": table, "seeds": seeds}, root)
    with errors_in_one_line():
        if table not in TABLES:
            raise ValueError(f"--table {table!r}: there are {', '.join(TABLES)}")
        requested = [name.strip() for name in rows.split(",")] if rows else list(TABLES[table])
        if unknown := set(requested) - set(TABLES[table]):
            raise ValueError(f"--rows {sorted(unknown)}: table {table} has {', '.join(TABLES[table])}")
        base = load_config(config, overrides or [])
        chosen = [name for number, name in enumerate(TABLES[table]) if number == 0 or name in requested]
        finished = base.workspace
        for turn, seed in enumerate(seeds.split(",")):
            runs: list[Workspace] = []
            for number, name in enumerate(chosen):
                changed = [
                    *(overrides or []),
                    *TABLES[table][name],
                    f"seed={seed}",
                    f"name=table-{table}-{number}",
                    f"root={root / NAME}",
                    *EVALUATED,
                ]
                runs.append(train(load_config(config, changed), base, console))
                for system, label in ((TRAINED, name), (UNTRAINED, f"{name}, untrained")):
                    benchmark.measured({"row": label, "seed": seed}, measured(runs[-1], system, runs[0]))
            if turn == 0:
                for system in BESIDE:
                    benchmark.measured({"row": system, "seed": str(base.seed)}, measured(finished, system, runs[0]))
        benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
