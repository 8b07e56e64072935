"""Fit the weight of the blend on the validation cases, for `nightly` with `nightly.ranker: blend`."""

import json

from allmrec.bundle import latest_bundle
from allmrec.core.artifacts import commit, file_entry, invalidate, read_file, read_manifest
from allmrec.core.pretrained import model_identity
from allmrec.core.storage import Storage
from allmrec.data.sequences import num_shards
from allmrec.nightly.blend import METRIC, FitShards, best_weight
from jobs.runtime.ray_data import iter_results, map_actors
from jobs.runtime.ray_train import start_ray
from jobs.runtime.step import Context, Stats, Step

ARTIFACT, NAME = "blend", "blend.json"


def run(context: Context) -> Stats:
    config, version = context.config, latest_bundle(context.storage)
    shards = num_shards(context.artifact("evaluation_cases"))
    start_ray(config)
    fitted = map_actors(range(shards), FitShards, (context.storage, version, config.llm, config.seed), config.workers)
    rows = []
    with context.console.progress("fit blend", shards) as bar:
        for table in iter_results(fitted):
            rows += table.to_pylist()
            bar.advance(table.num_rows)
    fit = {"bundle": version, **best_weight(rows)}
    target, data = context.artifact(ARTIFACT), json.dumps(fit, indent=1).encode()
    invalidate(target)
    target.write(NAME, data)
    commit(target, ARTIFACT, context.fingerprint, {NAME: file_entry(data)}, context.resolved("llm"), fit)
    means = fit[METRIC]
    stats = {f"{METRIC} of the {who} alone": means[weight] for who, weight in (("teacher", "0.0"), ("LLM", "1.0"))}
    return {"weight": fit["weight"], "cases": fit["cases"], METRIC: max(means.values()), **stats}


def plan(context: Context) -> Stats:
    return {"cases": read_manifest(context.artifact("evaluation_cases")).stats["valid"]}


def fitted_weight(storage: Storage) -> float:
    """The LLM's share, as it was fitted."""
    return json.loads(read_file(storage.at(ARTIFACT), read_manifest(storage.at(ARTIFACT)), NAME))["weight"]


STEP = Step(
    verb="fit blend",
    sections=("llm",),
    inputs=("bundle", "evaluation_cases", "sequences"),
    outputs=(ARTIFACT,),
    run=run,
    plan=plan,
    external_inputs=lambda context: [
        model_identity(context.config.llm.name, context.config.llm.revision),
        latest_bundle(context.storage),
    ],
)
