"""`embed` is killed, and one of its workers is: what was embedded stays, and every item ends with its embedding."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
from jobs.config import Config
from schemas import items

pytestmark = pytest.mark.e2e

NUM_ITEMS = 2000


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


def start(config: Config, path: Path) -> subprocess.Popen:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.embed", "--config", str(path)]
    # A group of its own, so that killing it takes its Ray along.
    return subprocess.Popen(command, start_new_session=True)


def wait_for(what: Callable[[], bool], process: subprocess.Popen) -> None:
    while not what():
        assert process.poll() is None, "it ended too early"
        time.sleep(0.01)


def encoders(process: subprocess.Popen) -> list[int]:
    """The process ids of a run's actors."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, pid = (folder / "cmdline").read_bytes(), int(folder.name)
            if b"MapWorker" in title and os.getsid(pid) == process.pid:
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_nothing_is_embedded_twice_and_nothing_is_lost(tmp_path):
    build_encoder(pa.array(["Title: Moonfall saga, Description: "]), tmp_path / "encoder")
    text = {"model": str(tmp_path / "encoder"), "batch_size": 1, "min_workers": 1}
    config = Config(name="run", root=str(tmp_path), text=text, workers={"num_workers": 1})  # type: ignore[arg-type]
    storage, texts = open_storage(config.workspace_uri), write_items(config)
    cache = TextCache.of(storage, encoder_identity(config.text))

    def kept() -> int:
        return len(list(cache.storage.list()))

    victim = start(config, tmp_path / "run.yaml")
    wait_for(lambda: kept() >= 20, victim)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    time.sleep(0.5)  # its workers are gone
    before = {name: cache.storage.read(name) for name in (entry.key for entry in cache.storage.list())}
    saved = len(cache.index().keys)
    assert 0 < saved < NUM_ITEMS

    second = start(config, tmp_path / "run.yaml")
    wait_for(lambda: kept() >= len(before) + 20, second)
    os.kill(encoders(second)[0], signal.SIGKILL)
    assert second.wait() == 0

    stats = read_manifest(storage.at("item_text_embeddings")).stats
    assert (stats["embedded"], stats["reused"]) == (NUM_ITEMS - saved, saved)
    assert all(cache.storage.read(name) == data for name, data in before.items())
    table = read_table(storage.at("item_text_embeddings"))
    assert table["item_id"].to_pylist() == [f"i{number:05d}" for number in range(NUM_ITEMS)]
    expected = load_encoder(config.text).encode(texts.to_pylist())
    assert np.allclose(np.array(table["embedding"].to_pylist()), expected, atol=1e-5)
