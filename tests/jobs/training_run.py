"""A small finished run for the tests of the training verbs: tables written by hand, no other verb needed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import torch

from allmrec.cf.teacher import build_teacher, save_teacher
from allmrec.core.artifacts import writing
from allmrec.core.hashing import shard_of
from allmrec.core.storage import Storage, open_storage
from allmrec.data.trained_items import write_trained_items
from jobs.config import Config
from schemas import evaluation_cases, item_text_embeddings, items, sequences

NUM_USERS, NUM_ITEMS, LENGTH = 120, 24, 8
USER_IDS = [f"user-{row}" for row in range(NUM_USERS)]
# After item i comes i + 1, after the last comes 1.
STARTS = np.random.default_rng(0).integers(0, NUM_ITEMS, NUM_USERS)
HISTORIES = (STARTS[:, None] + np.arange(LENGTH)) % NUM_ITEMS + 1


def config(root: Path, **sections: dict) -> Config:
    """Two workers, one failure allowed."""
    teacher = {
        "dim": 8,
        "dropout": 0.2,
        "epochs": 6,
        "eval_every": 2,
        "batch_size": 32,
        "learning_rate": 0.01,
        "validation": "random",
    }
    settings = {"teacher": teacher, "alignment": {"joint_dim": 8, "epochs": 4, "learning_rate": 0.001}} | sections
    return Config(name="small", root=str(root), workers={"num_workers": 2, "max_failures": 1}, **settings)


def prepare(config: Config, vectors: np.ndarray | None = None) -> Storage:
    """Write `items`, `sequences`, `evaluation_cases` and `item_text_embeddings` of the run.

    Args:
        vectors: the text embeddings; by default random ones in 6 dimensions.
    """
    storage = open_storage(config.workspace_uri, config.storage)
    numbers = np.arange(1, NUM_ITEMS + 1)
    names = [f"item-{number}" for number in numbers]
    counts = {"popularity": numbers, "interactions": numbers + 1}
    columns = {"item_id": names, "title": names, "item_index": numbers, "text_hash": names, **counts}
    _write(storage.at("items"), items.SCHEMA, [_table(items.SCHEMA, NUM_ITEMS, columns)])
    if vectors is None:
        vectors = np.random.default_rng(1).normal(size=(NUM_ITEMS, 6)).astype(np.float32)
    columns = {"item_id": names, "text_hash": names, "encoder": ["none"] * NUM_ITEMS, "embedding": vectors.tolist()}
    schema = item_text_embeddings.schema(vectors.shape[1])
    _write(storage.at("item_text_embeddings"), schema, [_table(schema, NUM_ITEMS, columns)])

    shards = shard_of(pa.array(USER_IDS), 2)
    order = np.argsort(USER_IDS)
    shares = [order[shards[order] == shard] for shard in range(2)]
    negatives = (HISTORIES[:, -2:-1] + np.arange(3, 12)) % NUM_ITEMS + 1
    candidates = np.concatenate([HISTORIES[:, -2:-1], negatives], axis=1)
    for name, schema, columns in (
        (
            "sequences",
            sequences.SCHEMA,
            {"item_index": HISTORIES, "timestamp": HISTORIES, "train_length": np.full(NUM_USERS, LENGTH - 2)},
        ),
        (
            "evaluation_cases",
            evaluation_cases.SCHEMA,
            {
                "target": candidates[:, 0],
                "history_length": np.full(NUM_USERS, LENGTH - 2),
                "candidates": candidates,
                "split": np.full(NUM_USERS, "valid"),
                "protocol": np.full(NUM_USERS, "random"),
                "warm": np.ones(NUM_USERS, bool),
                "cold": np.zeros(NUM_USERS, bool),
            },
        ),
    ):
        columns["user_id"] = np.array(USER_IDS)
        tables = [_table(schema, len(rows), {key: column[rows] for key, column in columns.items()}) for rows in shares]
        _write(storage.at(name), schema, tables, interactions=HISTORIES.size, valid=NUM_USERS)
    return storage


def write_teacher(config: Config, storage: Storage) -> None:
    """An untrained teacher."""
    torch.manual_seed(0)
    teacher = build_teacher(config.teacher, NUM_ITEMS)
    with writing(storage.at("teacher"), "teacher", "by hand", config.model_dump(mode="json")) as out:
        out.add(save_teacher(storage.at("teacher"), teacher))
        out.stats["num_items"] = NUM_ITEMS
        out.add(write_trained_items(storage.at("teacher"), storage.at("items")))


def kill_a_driver(job: ModuleType, slow: Callable, config: Config, folder: Path, checkpoints: Path) -> None:
    """Run a job's step in a process of its own, with a loop that takes its time, and kill it with its Ray.

    Args:
        slow: the loop, a module's own.
        folder: where the config is written.
        checkpoints: the folder of the job's checkpoints.
    """
    path = folder / "config.json"
    path.write_text(config.model_dump_json())
    script = (
        f"import sys\nimport {job.__name__} as job\nfrom jobs.config import load_config\n"
        "from jobs.runtime.console import Console\nfrom jobs.runtime.step import execute\n"
        f"from {slow.__module__} import {slow.__name__}\njob.loop = {slow.__name__}\n"
        "execute(job.STEP, load_config(sys.argv[1]), Console())"
    )
    # A group of its own, so that killing it takes its Ray along.
    victim = subprocess.Popen([sys.executable, "-c", script, str(path)], start_new_session=True)
    kill_after_two_checkpoints(victim, checkpoints)


def kill_after_two_checkpoints(driver: subprocess.Popen, folder: Path) -> None:
    """SIGKILL a driver (the leader of a group with its Ray) once Ray's list of checkpoints in `folder` has two."""

    def listed() -> int:
        try:
            return sum(len(json.loads(path.read_text())["checkpoint_results"]) for path in folder.glob("*/*.json"))
        except ValueError:  # being written
            return 0

    while listed() < 2:
        assert driver.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate()


def _table(schema: pa.Schema, rows: int, columns: dict) -> pa.Table:
    values = [np.asarray(columns.get(field.name, [None] * rows)).tolist() for field in schema]
    arrays = [pa.array(column, field.type) for column, field in zip(values, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _write(storage: Storage, schema: pa.Schema, tables: list[pa.Table], **stats: int) -> None:
    with writing(storage, "table", "by hand") as out:
        for shard, table in enumerate(tables):
            out.table(shard, schema, table)
        out.stats |= stats
