"""Embed the items' texts with the text encoder: Q_i.

    python -m jobs.embed --config jobs/configs/demo.yaml

Actors that hold the encoder embed the texts that its cache does not hold, and keep what they made in the cache, block
by block: a run that was killed resumes, and a text that did not change costs nothing. Then tasks write the embeddings
by item, in shards; a shard without a change stays. Which texts are missing and where the embeddings are is found out by
one task, and written into drafts that the others read: nothing on the driver grows with the items.
"""

import math
from dataclasses import replace

import pyarrow as pa
import ray.data

from allmrec.core.artifacts import ArtifactWriter, find_manifest, read_manifest, writing
from allmrec.core.shard_tasks import gather, read_reports
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.text.blocks import EmbedTexts, WriteItemEmbeddings
from allmrec.text.cache import TextCache
from allmrec.text.encoder import encoder_folder, encoder_identity
from allmrec.text.items import ItemTexts
from allmrec.text.plan import NumberTexts, Plan, count_missing, make_plan
from jobs.histories import clear
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs, preflight
from jobs.runtime.ray_data import iter_results, map_tasks, on_worker
from jobs.runtime.step import Context, Stats, Step


def run(context: Context) -> Stats:
    return embed_into(context, Workspace.item_text_embeddings)


def embed_by(context: Context, model: str, artifact: str) -> Stats:
    """Embed the items by another encoder than `text.model`, into an artifact of its own; within another step."""
    text = context.config.text.model_copy(update={"model": model, "revision": None})
    config = context.config.model_copy(update={"text": text})
    with preflight(STEP.needs, config, context.console):
        return embed_into(replace(context, config=config), artifact)


def embed_into(context: Context, artifact: str) -> Stats:
    """Write the artifact: the items' embeddings by `text.model`."""
    start_ray(context.config)
    drafts = context.workspace.text_drafts.at(artifact)
    clear(drafts)
    try:
        return _embed_into(context, artifact, drafts)
    finally:
        clear(drafts)


def _embed_into(context: Context, artifact: str, drafts: Storage) -> Stats:
    config, items, encoder = context.config, context.workspace.items, identity(context)
    texts, cache = ItemTexts(items, read_manifest(items)), TextCache.of(context.storage, encoder)
    files = len(texts.manifest.files)
    _, total = gather(read_reports(iter_results(map_tasks(files, NumberTexts(texts, drafts)))))
    plan_by = (drafts, files, cache, config.text.batch_size, config.workers.num_workers)
    planned = on_worker(make_plan, *plan_by)

    # Embed the texts that no run before this one has.
    counts, missing = total.counts, planned.missing
    speed: Stats = {"items_per_s": None}
    if missing:
        speed = embed(context, texts, planned, cache, encoder)
        planned = on_worker(make_plan, *plan_by)
        assert not planned.missing, "every text is in the cache by now"

    # Lay the embeddings out by item.
    target = context.workspace.at(artifact)
    write = WriteItemEmbeddings(texts, planned, cache, target, find_manifest(target), encoder)
    with writing(target, artifact, context.fingerprint, context.resolved("text")) as out:
        unchanged = write_item_embeddings(context, write, out)
        out.stats |= {
            "items": counts["items"],
            "embedded": missing,
            "reused": counts["items"] - missing,
            **speed,
            "untitled": counts["untitled"],
            "undescribed": counts["undescribed"],
            "shards": len(out.files),
            "shards unchanged": unchanged,
            "encoder": encoder,
        }
    return out.stats


def embed(context: Context, texts: ItemTexts, planned: Plan, cache: TextCache, encoder: str) -> Stats:
    """Put the embeddings of the planned texts into the cache; returns the speed.

    Workers come and go between `text.min_workers` and `workers.num_workers`; the task of one that dies is done again.
    """
    config, workers = context.config, context.config.workers
    encoder_folder(config.text)  # a wrong name ends here in one line, and not in an actor
    threads, most = max(int(workers.cpus_per_worker), 1), min(workers.num_workers, planned.tasks)
    dataset = ray.data.from_arrow([pa.table({"id": [task]}) for task in range(planned.tasks)]).map_batches(
        EmbedTexts,
        fn_constructor_args=(config.text, device(context), threads, texts, planned, cache, encoder),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(config.text.min_workers or most, most),
            max_size=most,
            max_tasks_in_flight_per_actor=2,  # one to work on and one to come; more would wait where others idle
        ),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
    )
    began, end, busy = math.inf, -math.inf, 0.0
    with context.console.progress("embed", planned.texts) as bar:
        for table in iter_results(dataset):
            for block in table.to_pylist():
                began, end = min(began, block["started"]), max(end, block["ended"])
                busy += block["ended"] - block["started"]
                bar.advance(block["texts"])
    return {
        "items_per_s": planned.texts / max(end - began, 1e-9),
        "items/s of a worker": planned.texts / max(busy, 1e-9),
    }


def write_item_embeddings(context: Context, write: WriteItemEmbeddings, out: ArtifactWriter) -> int:
    """Write the embedding of every item; returns how many shards stayed."""
    shards, unchanged = write.plan.shards, 0
    with context.console.progress("write embeddings", shards) as bar:
        for table in iter_results(map_tasks(shards, write)):
            for row in table.to_pylist():
                out.add({row["name"]: row["entry"]})
                unchanged += row["unchanged"]
            bar.advance(len(table))
    return unchanged


def plan(context: Context) -> Stats:
    encoder = identity(context)
    items, missing = count_missing(context.workspace.items, TextCache.of(context.storage, encoder))
    return {"items": items, "embedded": missing, "encoder": encoder}


def device(context: Context) -> str:
    return "cuda" if context.config.workers.gpus_per_worker else "cpu"


def identity(context: Context) -> str:
    return encoder_identity(context.config.text, device(context))


STEP = Step(
    "embed",
    sections=("text",),
    inputs=(Workspace.items,),
    outputs=(Workspace.item_text_embeddings,),
    run=run,
    plan=plan,
    external_inputs=identity,
    needs=Needs("pool", models=lambda config: ("text",), blocks=lambda config: config.workers.num_workers),
)

if __name__ == "__main__":
    main("embed")
