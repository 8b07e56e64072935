"""Deal another system's candidates to the shards of the users, for `nightly` with `nightly.candidates` set.

python -m jobs.deal_candidates --config my.yaml
"""

from typing import Any

from allmrec.artifacts import seal, shard_name, unseal, write_shard
from allmrec.data.sequences import num_shards
from allmrec.data.sources import Source, find_files, open_source
from allmrec.nightly.deal import COLUMNS, DealCandidates, WriteCandidates
from jobs.cli import main
from jobs.datasets import over, tables
from jobs.step import Context, Facts, Step
from jobs.workers import start_ray
from schemas.candidates import SCHEMA


def run(context: Context) -> Facts:
    source, target = open_candidates(context), context.artifact("candidates")
    shards = num_shards(context.artifact("sequences"))
    start_ray(context.config)
    unseal(target)
    dealt = over(len(source.pieces), DealCandidates(source, shards)).repartition(shards, keys=["shard"])
    written = dealt.map_batches(WriteCandidates(target), batch_size=None, batch_format="pyarrow")
    files = {row.pop("name"): row for table in tables(written) for row in table.to_pylist()}
    for shard in range(shards):
        if shard_name(shard) not in files:
            files[shard_name(shard)] = write_shard(target, SCHEMA, shard_name(shard), SCHEMA.empty_table())
    seal(target, "candidates", context.made_by, files, context.resolved("nightly"))
    return {"users": sum(file["rows"] for file in files.values()), "shards": shards}


def plan(context: Context) -> Facts:
    source = open_candidates(context)
    return {"users": "unknown until read" if source.rows is None else source.rows, "pieces": len(source.pieces)}


def open_candidates(context: Context) -> Source:
    config = context.config
    assert config.nightly.candidates is not None, "called only with nightly.candidates set"
    return open_source("candidates", config.nightly.candidates, config.storage, COLUMNS, "nightly.candidates")


def input_files(context: Context) -> Any:
    config = context.config
    assert config.nightly.candidates is not None
    return [vars(file) for file in find_files("candidates", config.nightly.candidates, config.storage)]


STEP = Step(
    "deal-candidates",
    sections=(),
    inputs=("sequences",),
    outputs=("candidates",),
    run=run,
    plan=plan,
    outside=input_files,
)

if __name__ == "__main__":
    main(STEP)
