"""`embed` beside the encoder's own `encode`, called in one process with the same texts on the same cores.

    python -m benchmarks.embed --model sentence-transformers/all-MiniLM-L6-v2

"items/s" of ours counts from the first block's beginning to the last one's end; "items/s, whole" counts all that a user
waits for: Ray's start, loading the encoder on every worker, the cache, and the table by item. The encoder's own counts
encoding alone, after a first batch that does not count. Both must give the same embeddings. Then one item in a hundred
changes its title, and the second run must embed those and no others. The catalogue is generated: titles of the sample
shop, with descriptions of a few sentences to many (log-normal).
"""

import hashlib
import multiprocessing
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
import typer

from allmrec.core.artifacts import read_manifest, read_table, writing
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import item_texts
from allmrec.demo.encoder import build_encoder
from allmrec.demo.sample.shop import SampleConfig, draw_latent_items
from allmrec.demo.sample.titles import items_table
from allmrec.text.encoder import TextConfig, load_encoder
from benchmarks.report import ROOT, Benchmark, Row
from jobs import embed
from jobs.config import Config
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from schemas import items as items_schema

NAME = "embed"
SENTENCES = 3  # of a description, the median
CHANGED = 0.01
TOLERANCE = 1e-4  # between two embeddings of a text in batches of other lengths


def catalogue(count: int, seed: int = 0) -> pa.Table:
    """item_id, title and description of `count` items."""
    config = SampleConfig(items=max(count, 30), seed=seed)
    shop = items_table(config, "movies", draw_latent_items(config, "movies")).slice(0, count)
    random = np.random.default_rng(seed)
    lengths = np.ceil(random.lognormal(np.log(SENTENCES), 0.8, count)).astype(np.int64).clip(1, 40)
    sentences = (
        shop["description"].drop_null().take(random.integers(len(shop["description"].drop_null()), size=sum(lengths)))
    )
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    described = pc.binary_join(pa.ListArray.from_arrays(offsets, sentences.combine_chunks()), " ")
    return pa.table({"item_id": shop["item_id"], "title": shop["title"], "description": described})


def write_items(storage: Storage, table: pa.Table) -> None:
    """The artifact `items`, as far as `embed` reads it."""
    count, schema = len(table), items_schema.SCHEMA
    texts = item_texts(table["title"], table["description"]).to_pylist()
    columns = {
        **{name: table[name] for name in table.column_names},
        "item_index": np.arange(1, count + 1, dtype=np.int32),
        "popularity": np.zeros(count, np.int64),
        "interactions": np.zeros(count, np.int64),
        "text_hash": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    with writing(storage, Workspace.items, "benchmark") as out:
        out.table(0, schema, pa.table(arrays, names=schema.names))


def in_process(text: TextConfig, texts: list[str], threads: int) -> tuple[float, np.ndarray]:
    """Seconds, and the embeddings (N, D); in a fresh process."""
    torch.set_num_threads(threads)
    encoder = load_encoder(text)
    texts = [one[: text.max_chars] for one in texts]
    encoder.encode(texts[: text.batch_size], batch_size=text.batch_size)
    started = time.perf_counter()
    embeddings = encoder.encode(texts, batch_size=text.batch_size, show_progress_bar=False)
    return time.perf_counter() - started, embeddings


def ours(config: Config, console: Console) -> tuple[Row, np.ndarray]:
    """The verb `embed`, and the embeddings (N, D) that it wrote."""
    started = time.perf_counter()
    execute(embed.STEP, config, console)
    seconds = time.perf_counter() - started
    target = config.workspace.item_text_embeddings
    stats, lists = read_manifest(target).stats, read_table(target).column("embedding").combine_chunks()
    numbers = {"items/s": stats["items_per_s"], "items/s, whole": stats["embedded"] / seconds, "seconds": seconds}
    return numbers | {"embedded": stats["embedded"]}, lists.flatten().to_numpy().reshape(len(lists), -1)


def refuse_difference(mine_ND: np.ndarray, theirs_ND: np.ndarray) -> None:
    """Raises ValueError unless both are the same embeddings."""
    worst = float(np.abs(mine_ND - theirs_ND).max())
    if worst > TOLERANCE:
        raise ValueError(f"embeddings differ by up to {worst:.2g} from those of the encoder itself")


def main(
    items: Annotated[int | None, typer.Option(help="default: 20,000; quick: 600")] = None,
    model: Annotated[str | None, typer.Option(help="hub name or folder; default: MiniLM; quick: the stand-in")] = None,
    threads: Annotated[int, typer.Option(help="of the encoder's own process, and our workers, of one CPU each")] = 2,
    trials: Annotated[int, typer.Option(help="of the first run and of the encoder's own")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Embed a generated catalogue, both ways; then change one item in a hundred, and embed again."""
    items = items or (600 if quick else 20_000)
    console, work = Console(log_json), (root / NAME).absolute()
    settings = {"items": items, "model": model, "threads": threads, "trials": trials}
    benchmark = Benchmark(NAME, console, settings, root, quick, repeat="trial")
    shop = catalogue(items)
    texts = item_texts(shop["title"], shop["description"])
    if model is None and quick:
        model = str(work / "encoder")
        build_encoder(texts.combine_chunks(), model)
    text = TextConfig(model=model or "sentence-transformers/all-MiniLM-L6-v2")
    config = Config(name="run", root=str(work), text=text, workers={"num_workers": threads})
    workspace, fresh = config.workspace, multiprocessing.get_context("spawn")
    with errors_in_one_line():
        for trial in range(trials):
            with ProcessPoolExecutor(1, fresh) as process:
                seconds, theirs_ND = process.submit(in_process, text, texts.to_pylist(), threads).result()
            numbers = {"items/s": items / seconds, "items/s, whole": items / seconds, "seconds": seconds}
            benchmark.measured({"way": "encode", "trial": trial}, numbers | {"embedded": items})
            shutil.rmtree(config.workspace_uri, ignore_errors=True)
            write_items(workspace.items, shop)
            numbers, mine_ND = ours(config, console)
            ray.shutdown()
            refuse_difference(mine_ND, theirs_ND)
            benchmark.measured({"way": "embed", "trial": trial}, numbers)
        changed = np.random.default_rng(1).permutation(items)[: max(round(CHANGED * items), 1)]
        marks = np.zeros(items, bool)
        marks[changed] = True
        titles = pc.if_else(pa.array(marks), pc.binary_join_element_wise(shop["title"], "again", ": "), shop["title"])
        write_items(workspace.items, shop.set_column(1, "title", titles))
        numbers, after_ND = ours(config, console)
        ray.shutdown()
        if not np.array_equal(after_ND[~marks], mine_ND[~marks]):
            raise ValueError("an item that did not change has another embedding")
        benchmark.measured({"way": "embed, 1 % changed", "trial": 0}, numbers)
    rate, own = (benchmark.mean("items/s", way=way) for way in ("embed", "encode"))
    benchmark.at_least("items/s: embed / encode", rate / own, 0.95)
    again = benchmark.mean("embedded", way="embed, 1 % changed")
    benchmark.at_most("texts embedded again, beside those that changed", abs(again - len(changed)), 0)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
