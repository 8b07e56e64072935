"""Fit the weight of a blend on the validation cases, for `nightly` with the ranker `blend` or `llm-srec-blend`."""

import json

from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.pretrained import model_identity
from allmrec.core.shard_tasks import read_reports
from allmrec.core.workspace import Workspace
from allmrec.data.sequences import num_shards
from allmrec.nightly.blend import METRIC, NAME, FitShards, best_weight
from jobs.runtime.cluster import start_ray
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import iter_results, map_actors
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    config, version = context.config, latest_bundle(context.storage)
    shards = num_shards(context.workspace.evaluation_cases)
    start_ray(config)
    told = (context.storage, version, config.llm, config.seed, config.nightly.ranker)
    fitted = map_actors(range(shards), FitShards, told, config.workers)
    reports = []
    with context.console.progress("fit blend", shards) as bar:
        for report in read_reports(iter_results(fitted)):
            reports.append(report)
            bar.advance()
    fit = {"bundle": version, "ranker": config.nightly.ranker, **best_weight(reports)}
    with writing(context.workspace.blend, Workspace.blend, context.fingerprint, context.resolved("llm")) as out:
        out.file(NAME, json.dumps(fit, indent=1).encode())
        out.stats |= fit
    means = fit[METRIC]
    stats = {f"{METRIC} of the {who} alone": means[weight] for who, weight in (("teacher", "0.0"), ("LLM", "1.0"))}
    return {"weight": fit["weight"], "cases": fit["cases"], METRIC: max(means.values()), **stats}


def plan(context: Context) -> Stats:
    return {"cases": read_manifest(context.workspace.evaluation_cases).stats["valid"]}


def external_inputs(context: Context) -> list[str]:
    config = context.config
    found = [model_identity(config.llm.name, config.llm.revision), latest_bundle(context.storage)]
    return found if config.nightly.ranker == "blend" else [*found, config.nightly.ranker]


STEP = Step(
    verb="fit blend",
    sections=("llm",),
    inputs=("bundle", "evaluation_cases", "sequences"),
    outputs=(Workspace.blend,),
    run=run,
    plan=plan,
    needs=Needs("pool", models=lambda config: ("llm",)),
    external_inputs=external_inputs,
)
