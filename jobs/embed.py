"""Embed the items' texts with the text encoder: Q_i.

    python -m jobs.embed --config jobs/configs/demo.yaml

Actors that hold the encoder embed the texts that its cache does not hold, and keep what they made in the cache, block
by block: a run that was killed resumes, and a text that did not change costs nothing. Then tasks write the embeddings
by item, in shards; a shard without a change stays. The driver holds texts and hashes, never an embedding.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from allmrec.core.artifacts import find_manifest, read_table, writing
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import UNTITLED, Catalogue
from allmrec.text.blocks import EmbedTexts, WriteItemEmbeddings
from allmrec.text.cache import Index, TextCache
from allmrec.text.encoder import encoder_folder, encoder_identity
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs, preflight
from jobs.runtime.ray_data import iter_results
from jobs.runtime.step import Context, Stats, Step

BLOCKS_PER_WORKER = 16  # at least, so that workers end together
MOST_BATCHES = 16  # of a block, which is the unit of resuming
ITEMS_PER_SHARD = 1 << 15


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
    table, encoder = read_table(context.workspace.items), identity(context)
    items, cache = Catalogue.from_table(table), TextCache.of(context.storage, encoder)
    wanted = pa.table({"item_id": items.item_ids, "text_hash": items.text_hashes, "text": items.texts})[1:]

    # Embed the texts that no run before this one has.
    index = cache.index()
    missing = index.find(wanted["text_hash"])[0] < 0
    speed: Stats = {"items_per_s": None}
    if missing.any():
        speed = embed(context, first_of_each_text(wanted.filter(pa.array(missing))), cache, encoder)
        index = cache.index()

    # Lay the embeddings out by item.
    target = context.workspace.at(artifact)
    write = WriteItemEmbeddings(target, find_manifest(target), cache, index.files, encoder)
    with writing(target, artifact, context.fingerprint, context.resolved("text")) as out:
        files, unchanged = write_item_embeddings(context, wanted, write, index)
        out.add(files)
        out.stats |= {
            "items": len(wanted),
            "embedded": int(missing.sum()),
            "reused": int((~missing).sum()),
            **speed,
            "untitled": pc.sum(pc.equal(items.titles, UNTITLED)).as_py(),
            "undescribed": table["description"].null_count,
            "shards": len(files),
            "shards unchanged": unchanged,
            "encoder": encoder,
        }
    return out.stats


def embed(context: Context, texts: pa.Table, cache: TextCache, encoder: str) -> Stats:
    """Put the embeddings of item_id, text_hash and text into the cache; returns the speed.

    Workers come and go between `text.min_workers` and `workers.num_workers`; a block whose worker dies is done again.
    """
    config, workers = context.config, context.config.workers
    encoder_folder(config.text)  # a wrong name ends here in one line, and not in an actor
    batches = math.ceil(len(texts) / config.text.batch_size / (BLOCKS_PER_WORKER * workers.num_workers))
    blocks = list(by_length(texts, min(batches, MOST_BATCHES) * config.text.batch_size))
    start_ray(config)
    most = min(workers.num_workers, len(blocks))
    dataset = ray.data.from_arrow(blocks).map_batches(
        EmbedTexts,
        fn_constructor_args=(config.text, device(context), max(int(workers.cpus_per_worker), 1), cache, encoder),
        batch_format="pyarrow",
        batch_size=None,  # a block
        compute=ray.data.ActorPoolStrategy(
            min_size=min(config.text.min_workers or most, most),
            max_size=most,
            max_tasks_in_flight_per_actor=2,  # one to work on and one to come; more would wait where others idle
        ),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
    )
    done: list[dict[str, Any]] = []
    with context.console.progress("embed", len(texts)) as bar:
        for table in iter_results(dataset):
            done += table.to_pylist()
            bar.advance(sum(table["texts"].to_pylist()))
    seconds = max(block["ended"] for block in done) - min(block["started"] for block in done)
    busy = sum(block["ended"] - block["started"] for block in done)
    return {"items_per_s": len(texts) / max(seconds, 1e-9), "items/s of a worker": len(texts) / max(busy, 1e-9)}


def write_item_embeddings(
    context: Context, wanted: pa.Table, transform: WriteItemEmbeddings, index: Index
) -> tuple[dict[str, Any], int]:
    """Write each item's embedding, in the order of `wanted`; the files' entries, and how many stayed."""
    start_ray(context.config)
    file, row = index.find(wanted["text_hash"])
    assert (file >= 0).all(), "every text is in the cache by now"
    shard = np.arange(len(wanted), dtype=np.int32) // ITEMS_PER_SHARD
    located = pa.table({**{name: wanted[name] for name in ("item_id", "text_hash")}, "file": file, "row": row})
    located = located.append_column("shard", pa.array(shard))
    blocks = [located.slice(start, ITEMS_PER_SHARD) for start in range(0, len(located), ITEMS_PER_SHARD)]
    written = ray.data.from_arrow(blocks).map_batches(transform, batch_format="pyarrow", batch_size=None)
    files, unchanged = {}, 0
    with context.console.progress("write embeddings", len(blocks)) as bar:
        for table in iter_results(written):
            for row_ in table.to_pylist():
                files[row_["name"]] = row_["entry"]
                unchanged += row_["unchanged"]
            bar.advance(len(table))
    return files, unchanged


def first_of_each_text(table: pa.Table) -> pa.Table:
    _, first = np.unique(table["text_hash"].to_numpy(zero_copy_only=False), return_index=True)
    return table.take(pa.array(np.sort(first)))


def by_length(texts: pa.Table, size: int) -> Iterator[pa.Table]:
    """Blocks of texts of similar length, so that batches hold little padding; the longest first, so that those that
    are done last are short. Texts of other shards are not mixed in: so a shard is in few files."""
    for start in range(0, len(texts), ITEMS_PER_SHARD):
        window = texts.slice(start, ITEMS_PER_SHARD)
        order = np.argsort(-pc.utf8_length(window["text"]).to_numpy(), kind="stable")
        for first in range(0, len(window), size):
            yield window.take(pa.array(order[first : first + size])).combine_chunks()


def plan(context: Context) -> Stats:
    items, encoder = read_table(context.workspace.items).column("text_hash"), identity(context)
    missing = TextCache.of(context.storage, encoder).index().find(items)[0] < 0
    return {"items": len(items), "embedded": int(missing.sum()), "encoder": encoder}


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
