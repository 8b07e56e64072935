"""The nightly run: candidates for every user, ranked by the LLM, published as Parquet.

    allmrec nightly --config jobs/configs/demo.yaml --date 2026-11-21
    ray job submit -- python -m jobs.nightly --config jobs/configs/demo.yaml --date 2026-11-21

A shard of users is the unit of work: a run that was killed goes on with the shards that are not committed.
"""

import datetime
from collections import Counter

import allmrec
from allmrec.artifacts import MANIFEST, read_manifest
from allmrec.bundle import check_items, check_llm, latest_bundle, read_description
from allmrec.cf.approximate import load_faiss
from allmrec.data.sequences import num_shards
from allmrec.nightly.lease import hold_lease
from allmrec.nightly.publish import Run
from allmrec.nightly.score import AuditShards, ScoreShards
from allmrec.storage import Storage, open_storage
from jobs import deal_candidates
from jobs.config import Config
from jobs.console import Console
from jobs.datasets import over, pooled, tables
from jobs.step import Facts, execute
from jobs.workers import start_ray

INPUTS = ("bundle", "sequences", "items")


def nightly(config: Config, console: Console, run_date: datetime.date, dry_run: bool = False) -> None:
    """Score and publish one date, or say that it is published already.

    Raises:
        ValueError: an input is missing, another run has the date, or it was published from something else.
    """
    storage = open_storage(config.run_uri, config.storage)
    missing = [name for name in INPUTS if not storage.exists(f"{name}/{MANIFEST}")]
    if missing and dry_run:
        console.plan("nightly", {"waits for": ", ".join(missing)})
        return
    if config.nightly.candidates:
        execute(deal_candidates.STEP, config, console, dry_run)
    identity = run_identity(config, storage)
    output = open_storage(config.nightly.output or f"{config.run_uri}/recommendations", config.storage)
    if dry_run:
        console.plan("nightly", {"run date": run_date, **plan(config, storage), "output": output.uri})
        return
    run = Run.open(output, run_date, identity)
    if run.published():
        console.skip("nightly", f"{run_date} is published already, as run {run.run_id} in {output.uri}")
        return
    with (
        console.phase("nightly") as phase,
        hold_lease(output, run_date, config.nightly.lease_s, lambda message: console.event(message)) as lease,
    ):
        facts = score(config, console, run, storage)
        lease.check()
        entry = run.publish(num_shards(storage.at("sequences")), audit(config, console, run, storage), lease)
        phase.facts({**facts, "run": run.run_id, "log_entry": entry["n"], "published_at": output.uri})


def run_identity(config: Config, storage: Storage) -> Facts:
    """What the result depends on: two runs of a date that agree on it are the same run."""
    bundle = latest_bundle(storage)
    description = read_description(storage, bundle)
    check_llm(description, config.llm)
    check_items(description, storage.at("items"))
    above = config.nightly.approximate_above
    if above is not None and read_manifest(storage.at("items")).rows > above:
        load_faiss()  # before any worker starts
    ranking = config.nightly.model_dump(mode="json", exclude={"output", "lease_s", "candidates"})
    candidates = storage.at("candidates")
    return {
        "bundle": bundle,
        "llm": description["models"]["llm"]["identity"],
        "sequences": read_manifest(storage.at("sequences")).digest,
        "items": read_manifest(storage.at("items")).digest,
        "candidates": read_manifest(candidates).digest if config.nightly.candidates else None,
        "nightly": ranking,
        "seed": config.seed,
        "code": allmrec.__version__,
    }


def score(config: Config, console: Console, run: Run, storage: Storage) -> Facts:
    """Score the shards that are not committed yet, on a pool of workers with an LLM each."""
    start_ray(config)
    shards = num_shards(storage.at("sequences"))
    pending = sorted(set(range(shards)) - run.finished_shards())
    totals: Counter[str] = Counter()
    given = storage.at("candidates") if config.nightly.candidates else None
    if pending:
        arguments = (run, storage, config.llm, config.nightly, config.seed, given)
        scored = pooled(pending, ScoreShards, arguments, config.workers)
        with console.progress("score", len(pending)) as bar:
            for table in tables(scored):
                for row in table.to_pylist():
                    totals.update({name: value for name, value in row.items() if name not in ("shard", "won")})
                    bar.advance(1, users=totals["users"])
    return speed(totals) | {"shards": shards, "shards_done_before": shards - len(pending)}


def speed(totals: Counter[str]) -> Facts:
    """What a shard's facts add up to, per second of a worker's work."""
    left_out = ("seconds", "padding", "index_compared", "index_found")
    facts: Facts = {name: count for name, count in sorted(totals.items()) if name not in left_out}
    if totals["seconds"]:
        facts["users/s of a worker"] = round(totals["users"] / totals["seconds"], 1)
        facts["tokens/s of a worker"] = round(totals["tokens"] / totals["seconds"])
    if totals["tokens"]:
        facts["padding %"] = round(100 * totals["padding"] / (totals["tokens"] + totals["padding"]), 2)
    if totals["index_compared"]:
        facts["recall of the index"] = round(totals["index_found"] / totals["index_compared"], 4)
    return facts


def audit(config: Config, console: Console, run: Run, storage: Storage) -> dict[int, str]:
    """Every shard's sha256, once it has passed the audit."""
    shards = num_shards(storage.at("sequences"))
    audited = over(shards, AuditShards(run, storage, config.nightly.top_k))
    digests: dict[int, str] = {}
    with console.progress("audit", shards) as bar:
        for table in tables(audited):
            digests |= {row["shard"]: row["sha256"] for row in table.to_pylist()}
            bar.advance(table.num_rows)
    return digests


def plan(config: Config, storage: Storage) -> Facts:
    """What a run would do: users, prompts and shards."""
    users = read_manifest(storage.at("sequences")).rows
    prompts = users if config.nightly.ranker == "llm" else 0
    return {"users": users, "shards": num_shards(storage.at("sequences")), "prompts": prompts}


if __name__ == "__main__":
    import typer

    from jobs.cli import nightly as command

    typer.run(command)
