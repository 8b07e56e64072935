"""The paper's Table 10: minutes of training, from the manifests, and seconds a batch of inference, measured."""

from pathlib import Path

import numpy as np
import ray

from allmrec.bundle.loading import load_bundle
from allmrec.core.artifacts import Manifest, find_manifest, read_manifest
from allmrec.core.workspace import Workspace
from allmrec.evaluation.systems import Systems
from allmrec.metrics import interval
from allmrec.model import ALLMRec
from benchmarks.clock import now
from benchmarks.nightly import stored_cases
from benchmarks.paper_ablations import ABLATIONS
from benchmarks.paper_layout import TIMES, name_of
from benchmarks.paper_numbers import ALLMREC, ALLMREC_ALL, MINUTES, NAMES, SECONDS
from benchmarks.paper_runs import PaperRuns, Source
from benchmarks.paper_tables import Request, judge, measure
from benchmarks.report import Row

TALLREC = "tallrec"
BATCH = 4  # users; the paper's batch of Stage-2


def times(request: Request) -> None:
    wanted = request.wanted("10")
    for runs in request.runs:
        seed = runs.base.seed
        sources: dict[str, Source] = runs.sources(wanted)
        if ALLMREC_ALL in wanted:
            changes = ABLATIONS["all"][NAMES[ALLMREC_ALL]]
            sources[ALLMREC_ALL] = runs.row([*changes, f"seed={seed}"]), ALLMREC
        measure(request.benchmark, "10", runs.base.name, sources, seed)
        timed = [name for name in sources if name != ALLMREC_ALL]  # with the same inference as A-LLMRec
        seconds = seconds_a_batch(runs, timed, request.users)
        for name, (workspace, _) in sources.items():
            labels = {"table": name_of("10", TIMES), "data": runs.base.name, "row": NAMES[name], "seed": seed}
            numbers: Row = {"paper's minutes": MINUTES[name], **minutes(workspace, name)}
            numbers["paper's seconds a batch"] = SECONDS[name]
            if name in seconds:
                error = float(seconds[name].std() / np.sqrt(len(seconds[name])))
                numbers |= {"seconds a batch": float(seconds[name].mean()), "± se, seconds a batch": error}
            request.benchmark.measured(labels, numbers)
        judge_times(request, runs, sources, seconds)


def judge_times(request: Request, runs: PaperRuns, sources: dict[str, Source], seconds: dict[str, np.ndarray]) -> None:
    """A-LLMRec trains and ranks in less time than TALLRec; training is measured once, so it has no interval."""
    if TALLREC not in sources:
        return
    labels = {"table": "10", "data": runs.base.name, "seed": runs.base.seed}
    difference_B = seconds[TALLREC] - seconds[ALLMREC]
    mean, _, high = interval(len(difference_B), float(difference_B.sum()), float((difference_B**2).sum()))
    batches: Row = {"difference": mean}
    if mean is not None and high is not None:
        batches["± 95 %, difference"] = high - mean
    theirs, ours = (minutes(sources[name][0], name) for name in (TALLREC, ALLMREC))
    known = "minutes" in theirs and "minutes" in ours
    training: Row = {"difference": theirs["minutes"] - ours["minutes"]} if known else {}
    for what, paper, numbers in (("minutes", MINUTES, training), ("seconds a batch", SECONDS, batches)):
        agree = int(paper[ALLMREC] < paper[TALLREC])
        judge(request.benchmark, f"{NAMES[ALLMREC]} < {NAMES[TALLREC]}, {what}", (agree, 1), labels, numbers)


def minutes(workspace: Workspace, system: str) -> Row:
    """Minutes of training, where the manifests hold its speed; for A-LLMRec of both stages."""
    if system == TALLREC:
        return _total(of_prompts(find_manifest(workspace.at(f"systems/{TALLREC}")), ("baselines", TALLREC)))
    alignment, projectors = (read_manifest(one) for one in (workspace.alignment, workspace.projectors))
    stage_2, epochs = of_prompts(projectors, ("projection",)), alignment.config["alignment"]["epochs"]
    if stage_2 is None or not alignment.stats.get("users_per_s"):
        return {}
    return _total(epochs * alignment.stats["users"] / alignment.stats["users_per_s"] / 60 + stage_2)


def of_prompts(manifest: Manifest | None, section: tuple[str, ...]) -> float | None:
    """Minutes of a training's steps with the LLM, without validation."""
    if manifest is None or not manifest.stats.get("prompts_per_s"):
        return None
    config = manifest.config
    for key in section:
        config = config[key]
    return float(manifest.stats["steps"] * config["batch_size"] / manifest.stats["prompts_per_s"] / 60)


def _total(found: float | None) -> Row:
    return {} if found is None else {"minutes": found}


def seconds_a_batch(runs: PaperRuns, systems: list[str], users: int) -> dict[str, np.ndarray]:
    """Seconds of every batch by system, measured in turns on the same users with one LLM, as in an evaluation."""
    workspace = runs.base.workspace
    ray.shutdown()
    version = read_manifest(workspace.evaluation).stats["bundle"]
    model = ALLMRec(load_bundle(workspace.storage, version), runs.base.llm)
    scored, cases = Systems(model, runs.base.seed), stored_cases(Path(runs.base.workspace_uri), users)
    batches = [np.arange(start, min(start + BATCH, len(cases))) for start in range(0, len(cases), BATCH)]
    spent: dict[str, list[float]] = {system: [] for system in systems}
    for number, batch in enumerate([batches[0], *batches]):  # the first is a warm-up
        for system in systems:
            started = now()
            scored.score(system, cases.take(batch))
            if number:
                spent[system].append(now() - started)
    return {system: np.array(seconds) for system, seconds in spent.items()}
