"""Embed the items' texts with the text encoder: Q_i.

    python -m jobs.embed --config jobs/configs/demo.yaml

Only texts that the previous embeddings do not hold, by this encoder, are encoded; a text that several items share
is encoded once.
"""

import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from allmrec.artifacts import read_manifest, read_table, seal, shard_name, unseal, write_shard
from allmrec.data.catalogue import UNTITLED, Catalogue
from allmrec.storage import Storage
from allmrec.text.encoder import TextEncoder, encoder_identity, model_folder, refuse_not_finite, to_lists
from jobs.datasets import tables
from jobs.step import Context, Facts, Step
from jobs.workers import start_ray
from schemas import item_text_embeddings

BATCHES_PER_BLOCK = 8  # the encoder sorts a block's texts by length, so that batches hold little padding
ROWS_PER_FILE = 1 << 17


def run(context: Context) -> Facts:
    table, encoder = read_table(context.artifact("items")), encoder_identity(context.config.text)
    items = Catalogue.from_table(table)
    target = context.artifact("item_text_embeddings")
    wanted = pa.table({"item_id": items.item_ids, "text_hash": items.text_hashes, "text": items.texts})[1:]

    known = previous_embeddings(target, encoder)
    new = wanted.filter(pc.invert(pc.is_in(wanted["text_hash"], known["text_hash"])))
    started = time.monotonic()
    encoded = encode(context, _first_of_each_text(new), encoder)
    seconds = max(time.monotonic() - started, 1e-9)

    # The old embeddings are read by now; should the writing be cut short, all are encoded again.
    unseal(target)
    files = write_embeddings(target, wanted, [known, *encoded], encoder)
    facts = {
        "items": len(wanted),
        "embedded": len(new),
        "reused": len(wanted) - len(new),
        "items_per_s": len(new) / seconds,
        "untitled": pc.sum(pc.equal(items.titles, UNTITLED)).as_py(),
        "undescribed": table["description"].null_count,
        "encoder": encoder,
    }
    seal(target, "item_text_embeddings", context.made_by, files, context.resolved("text"), facts)
    return facts


def previous_embeddings(storage: Storage, encoder: str) -> pa.Table:
    """Text hashes and embeddings that this encoder made before; without rows if there are none to be had."""
    try:
        table = read_table(storage)
    except ValueError:  # nothing there yet, or damaged: either way they are made anew
        return item_text_embeddings.schema(0).empty_table().select(["text_hash", "embedding"])
    return table.filter(pc.equal(table["encoder"], encoder)).select(["text_hash", "embedding"])


def encode(context: Context, texts: pa.Table, encoder: str) -> list[pa.Table]:
    """Tables of text_hash and embedding, from a table of item_id, text_hash and text."""
    config, encoded = context.config, []
    block = BATCHES_PER_BLOCK * config.text.batch_size
    blocks = [texts.slice(start, block) for start in range(0, len(texts), block)]
    if not blocks:
        return []
    model_folder(config.text)  # a wrong name ends here in one line, and not in an actor
    start_ray(config)
    workers = config.workers
    dataset = ray.data.from_arrow(blocks).map_batches(
        TextEncoder,
        fn_constructor_args=(config.text, "cuda" if workers.gpus_per_worker else "cpu"),
        batch_format="pyarrow",
        batch_size=None,  # a block
        compute=ray.data.ActorPoolStrategy(size=min(workers.num_workers, len(blocks))),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
    )
    with context.console.progress("embed", len(texts)) as bar:
        for batch in tables(dataset):
            refuse_not_finite(batch["item_id"], _matrix(batch["embedding"]), encoder)
            encoded.append(batch.select(["text_hash", "embedding"]))
            bar.advance(len(batch))
    return encoded


def write_embeddings(storage: Storage, wanted: pa.Table, embedded: list[pa.Table], encoder: str) -> Facts:
    """Write each item's embedding, in the order of `wanted`; returns the files' entries for `seal`."""
    embedded = [table for table in embedded if len(table)]
    rows_ND = np.concatenate([_matrix(table["embedding"]) for table in embedded])
    hashes = pa.chunked_array([chunk for table in embedded for chunk in table["text_hash"].chunks])
    rows = pc.index_in(wanted["text_hash"], hashes).to_numpy()
    files = {}
    for shard, start in enumerate(range(0, len(wanted), ROWS_PER_FILE)):
        part = wanted.slice(start, ROWS_PER_FILE).select(["item_id", "text_hash"])
        part = part.append_column("encoder", pa.array(np.full(len(part), encoder)))
        part = part.append_column("embedding", to_lists(rows_ND[rows[start : start + ROWS_PER_FILE]]))
        name, schema = shard_name(shard), item_text_embeddings.schema(rows_ND.shape[1])
        files[name] = write_shard(storage, schema, name, part)
    return files


def plan(context: Context) -> Facts:
    items = read_manifest(context.artifact("items")).rows
    return {"items": items, "at most embedded": items, "encoder": encoder_identity(context.config.text)}


def _first_of_each_text(table: pa.Table) -> pa.Table:
    _, first = np.unique(table["text_hash"].to_numpy(zero_copy_only=False), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _matrix(lists: pa.ChunkedArray) -> np.ndarray:
    """fixed_size_list<float32>[dim] as (N, dim)."""
    return np.concatenate([chunk.flatten().to_numpy() for chunk in lists.chunks]).reshape(len(lists), -1)


STEP = Step(
    "embed",
    sections=("text",),
    inputs=("items",),
    outputs=("item_text_embeddings",),
    run=run,
    plan=plan,
    outside=lambda context: encoder_identity(context.config.text),
)

if __name__ == "__main__":
    from jobs.cli import main

    main(STEP)
