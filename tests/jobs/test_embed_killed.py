"""`embed` is killed, and one of its workers is: what was embedded stays, and every item ends with its embedding."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from allmrec.core.artifacts import read_manifest, read_table, sha256, writing
from allmrec.core.storage import open_storage
from allmrec.data.catalogue import item_texts
from allmrec.demo.encoder import build_encoder
from allmrec.text.cache import TextCache
from allmrec.text.encoder import encoder_identity, load_encoder
from jobs import embed
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from schemas import items
from tests.jobs.in_process import driver_reads_no_table

pytestmark = pytest.mark.e2e

NUM_ITEMS = 1000


def write_items(config: Config) -> pa.ChunkedArray:
    """The `items` artifact; returns the texts."""
    titles = pa.chunked_array([[f"Moonfall {number} {'saga ' * (number % 7)}" for number in range(NUM_ITEMS)]])
    texts = item_texts(titles, pa.chunked_array([pa.nulls(NUM_ITEMS, pa.string())]))
    columns = {
        "item_id": [f"i{number:05d}" for number in range(NUM_ITEMS)],
        "title": titles,
        "item_index": np.arange(1, NUM_ITEMS + 1, dtype=np.int32),
        "popularity": np.zeros(NUM_ITEMS, np.int64),
        "interactions": np.zeros(NUM_ITEMS, np.int64),
        "text_hash": [sha256(text.encode()) for text in texts.to_pylist()],
    }
    arrays = [columns.get(field.name, pa.nulls(NUM_ITEMS, field.type)) for field in items.SCHEMA]
    storage = open_storage(config.workspace_uri).at("items")
    with writing(storage, "items", "test") as out:
        out.table(0, items.SCHEMA, pa.table(arrays, names=items.SCHEMA.names))
    return texts


def actors() -> list[int]:
    """The process ids of Ray Data's actors whose raylet this process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker" in (folder / "cmdline").read_bytes() and parent(parent(int(folder.name))) == os.getpid():
                found.append(int(folder.name))
        except FileNotFoundError:
            continue
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(what: Callable[[], bool], runs: Callable[[], bool]) -> None:
    while not what():
        assert runs(), "it ended too early"
        time.sleep(0.01)


def test_nothing_is_embedded_twice_and_nothing_is_lost(tmp_path):
    build_encoder(pa.array(["Title: Moonfall saga, Description: "]), tmp_path / "encoder")
    text = {"model": str(tmp_path / "encoder"), "batch_size": 1, "min_workers": 1}
    config = Config(name="run", root=str(tmp_path), text=text, workers={"num_workers": 1})  # type: ignore[arg-type]
    storage, texts = open_storage(config.workspace_uri), write_items(config)
    cache = TextCache.of(storage, encoder_identity(config.text))

    def kept() -> int:
        return len(list(cache.storage.list()))

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    # A group of its own, so that killing it takes its Ray along.
    victim = subprocess.Popen([sys.executable, "-m", "jobs.embed", "--config", str(path)], start_new_session=True)
    wait_for(lambda: kept() >= 20, lambda: victim.poll() is None)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    time.sleep(0.5)  # its workers are gone
    before = {name: cache.storage.read(name) for name in (entry.key for entry in cache.storage.list())}
    saved = len(cache.index().keys)
    assert 0 < saved < NUM_ITEMS

    with ThreadPoolExecutor() as pool, driver_reads_no_table():
        second = pool.submit(execute, embed.STEP, config, Console(log_json=True))
        wait_for(lambda: kept() >= len(before) + 20, lambda: not second.done())
        (worker,) = actors()
        os.kill(worker, signal.SIGKILL)
        assert second.result()

    stats = read_manifest(storage.at("item_text_embeddings")).stats
    assert (stats["embedded"], stats["reused"]) == (NUM_ITEMS - saved, saved)
    assert not list(storage.list("drafts/"))
    assert all(cache.storage.read(name) == data for name, data in before.items())
    table = read_table(storage.at("item_text_embeddings"))
    assert table["item_id"].to_pylist() == [f"i{number:05d}" for number in range(NUM_ITEMS)]
    expected = load_encoder(config.text).encode(texts.to_pylist())
    assert np.allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-5)
