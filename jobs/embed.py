"""Embed the items' texts with the text encoder: Q_i.

    python -m jobs.embed --config jobs/configs/demo.yaml

Actors that hold the encoder embed the texts that its cache does not hold, and keep what they made in the cache, block
by block: a run that was killed resumes, and a text that did not change costs nothing. Then tasks write the embeddings
by item, in shards; a shard without a change stays. The driver holds a key and a length of every text.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from allmrec.core.artifacts import find_manifest, read_manifest, writing
from allmrec.core.shard_tasks import Task
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import ITEMS_PER_SHARD
from allmrec.text.blocks import EmbedTexts, WriteItemEmbeddings
from allmrec.text.cache import Index, TextCache
from allmrec.text.encoder import encoder_folder, encoder_identity
from allmrec.text.items import ItemTexts, text_keys
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.preflight import Needs, preflight
from jobs.runtime.ray_data import iter_results, map_tasks
from jobs.runtime.step import Context, Stats, Step

BLOCKS_PER_WORKER = 16  # at least, so that workers end together
MOST_BATCHES = 16  # of a block, which is the unit of resuming


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
    items, encoder = context.workspace.items, identity(context)
    texts, cache = ItemTexts(items, read_manifest(items)), TextCache.of(context.storage, encoder)
    numbers = numbers_of(texts)

    # Embed the texts that no run before this one has.
    index = cache.index()
    missing = index.find(numbers["key"].to_numpy())[0] < 0
    speed: Stats = {"items_per_s": None}
    if missing.any():
        speed = embed(context, texts, first_of_each_text(numbers, np.flatnonzero(missing)), cache, encoder)
        index = cache.index()

    # Lay the embeddings out by item.
    target = context.workspace.at(artifact)
    write = WriteItemEmbeddings(texts, target, find_manifest(target), cache, index.files, encoder)
    with writing(target, artifact, context.fingerprint, context.resolved("text")) as out:
        files, unchanged = write_item_embeddings(context, numbers["key"].to_numpy(), write, index)
        out.add(files)
        out.stats |= {
            "items": len(numbers),
            "embedded": int(missing.sum()),
            "reused": int((~missing).sum()),
            **speed,
            "untitled": pc.sum(numbers["untitled"]).as_py(),
            "undescribed": pc.sum(numbers["undescribed"]).as_py(),
            "shards": len(files),
            "shards unchanged": unchanged,
            "encoder": encoder,
        }
    return out.stats


@dataclass(frozen=True)
class ReadNumbers(Task):
    """Numbers of files of `items` → what embedding them is planned by."""

    texts: ItemTexts

    def tables(self, number: int) -> Iterator[pa.Table]:
        yield self.texts.numbers(number)


def numbers_of(texts: ItemTexts) -> pa.Table:
    """`ItemTexts.numbers` of every item, by item_index; workers read the texts."""
    tables = iter_results(map_tasks(len(texts.manifest.files), ReadNumbers(texts)))
    return pa.concat_tables(sorted(tables, key=lambda table: table["file"][0].as_py() if len(table) else 0))


def embed(context: Context, texts: ItemTexts, rows: pa.Table, cache: TextCache, encoder: str) -> Stats:
    """Put the embeddings of texts into the cache; returns the speed. Args: rows: of `first_of_each_text`.

    Workers come and go between `text.min_workers` and `workers.num_workers`; a block whose worker dies is done again.
    """
    config, workers = context.config, context.config.workers
    encoder_folder(config.text)  # a wrong name ends here in one line, and not in an actor
    batches = math.ceil(len(rows) / config.text.batch_size / (BLOCKS_PER_WORKER * workers.num_workers))
    blocks = list(by_length(rows, min(batches, MOST_BATCHES) * config.text.batch_size))
    most = min(workers.num_workers, len(blocks))
    dataset = ray.data.from_arrow(blocks).map_batches(
        EmbedTexts,
        fn_constructor_args=(config.text, device(context), max(int(workers.cpus_per_worker), 1), texts, cache, encoder),
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
    with context.console.progress("embed", len(rows)) as bar:
        for table in iter_results(dataset):
            done += table.to_pylist()
            bar.advance(sum(table["texts"].to_pylist()))
    seconds = max(block["ended"] for block in done) - min(block["started"] for block in done)
    busy = sum(block["ended"] - block["started"] for block in done)
    return {"items_per_s": len(rows) / max(seconds, 1e-9), "items/s of a worker": len(rows) / max(busy, 1e-9)}


def write_item_embeddings(
    context: Context, keys: np.ndarray, transform: WriteItemEmbeddings, index: Index
) -> tuple[dict[str, Any], int]:
    """Write the embedding of every item, whose texts' keys these are; the files' entries, and how many stayed."""
    file, row = index.find(keys)
    assert (file >= 0).all(), "every text is in the cache by now"
    item = np.arange(len(keys), dtype=np.int32)
    located = pa.table({"item": item, "file": file, "row": row, "shard": item // ITEMS_PER_SHARD})
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


def first_of_each_text(numbers: pa.Table, rows: np.ndarray) -> pa.Table:
    """Those of some items' rows, ascending, whose text no earlier one has, with the lengths of their texts."""
    first = np.sort(np.unique(numbers["key"].to_numpy()[rows], return_index=True)[1])
    return pa.table({"row": rows[first], "length": numbers["length"].to_numpy()[rows[first]]})


def by_length(rows: pa.Table, size: int) -> Iterator[pa.Table]:
    """Blocks of texts of similar length, so that batches hold little padding; the longest first, so that those that
    are done last are short. Texts of other shards are not mixed in: so a shard is in few files."""
    for start in range(0, len(rows), ITEMS_PER_SHARD):
        window = rows.slice(start, ITEMS_PER_SHARD)
        order = np.argsort(-window["length"].to_numpy(), kind="stable")
        for first in range(0, len(window), size):
            yield window.take(pa.array(order[first : first + size])).combine_chunks()


def plan(context: Context) -> Stats:
    items, encoder = context.workspace.items, identity(context)
    keys = text_keys(items)
    missing = TextCache.of(context.storage, encoder).index().find(keys)[0] < 0
    return {"items": len(keys), "embedded": int(missing.sum()), "encoder": encoder}


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
