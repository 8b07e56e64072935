"""Generated inputs: every row is accepted, rejected or left out, as it should be whatever it is written as.

A few by default; ALLMREC_INPUTS says how many are drawn with `-m faults`.
"""

import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from allmrec.core.storage import S3Config, open_storage
from allmrec.data.config import SourceConfig
from allmrec.data.prepare.clean import clean_interactions, log_columns
from allmrec.data.prepare.item_ids import ItemLookup
from allmrec.data.prepare.items import ITEMS, clean_items
from allmrec.data.sources import readers
from allmrec.data.sources.source import open_source
from schemas import rejected
from tests.data.sources.inputs import Input

FEW, MANY = 32, int(os.environ.get("ALLMREC_INPUTS", "200"))


def read_log(source, drawn) -> tuple[list[tuple], Counter]:
    good, others = [], Counter()
    lookup = ItemLookup.of(pa.array(drawn.items))
    for piece in source.pieces:
        for table in source.read(piece):
            cleaned = clean_interactions(table, drawn.data, lookup, source.place(piece))
            kept, reasons = cleaned.events.to_pylist(), cleaned.rejections.column("reason").to_pylist()
            assert len(kept) + len(reasons) + cleaned.filtered_out.total() == len(table)
            good += [(row["user_id"], drawn.items[row["item_index"] - 1], row["timestamp"]) for row in kept]
            others += Counter(reasons) + cleaned.filtered_out
    return sorted(good), others


def read_items(source) -> list[dict]:
    rows = []
    for piece in source.pieces:
        for table in source.read(piece):
            rows += clean_items(table, source.config, source.place(piece)).to_pylist()
    return rows


def check(seed: int, root: str, s3: S3Config) -> int:
    """How many rows were read."""
    drawn = Input(seed)
    storage = open_storage(root, s3)
    for number, data in enumerate(drawn.files()):
        storage.write(f"log/{number}{drawn.suffix}", data)
    items, data = drawn.catalogue()
    storage.write(f"items{drawn.suffix}", data)

    expected, reasons = drawn.expected()
    log = SourceConfig(paths=[f"{root}/log"], **drawn.settings)
    drawn.data = drawn.data.model_copy(update={"interactions": log})
    good, others = read_log(open_source("interactions", log, s3, log_columns(drawn.data)), drawn)
    assert others == reasons
    assert good == expected

    shop = log.model_copy(update={"paths": [f"{root}/items{drawn.suffix}"]})
    found = read_items(open_source("items", shop, s3, ITEMS))
    assert [{name: row[name] for name in items[0]} for row in found if row["reason"] is None] == items
    assert [row["reason"] for row in found if row["reason"]][-1] in (rejected.BAD_AVAILABLE, rejected.NULL_ID)
    return len(good) + others.total() + len(found)


def check_damaged(seed: int, root: str, s3: S3Config) -> None:
    """Files with bytes that are lost or others: read as far as they can be, or refused in one line."""
    drawn, storage = Input(seed), open_storage(root, s3)
    for number, data in enumerate(drawn.files()):
        harmed = np.frombuffer(data, dtype=np.uint8)[: len(data) - int(drawn.rng.integers(0, 9))].copy()
        at = drawn.rng.integers(0, max(len(harmed), 1), min(len(harmed), 3))
        harmed[at] = drawn.rng.integers(0, 256, len(at))
        storage.write(f"damaged/{number}{drawn.suffix}", harmed.tobytes())
    log = SourceConfig(paths=[f"{root}/damaged"], **drawn.settings)
    drawn.data = drawn.data.model_copy(update={"interactions": log})
    try:
        read_log(open_source("interactions", log, s3, log_columns(drawn.data)), drawn)
    except ValueError as error:
        assert "\n" not in str(error)


def fuzz(seeds, tmp_path, s3, s3_uri, monkeypatch) -> Counter:
    counts = Counter()
    for seed in seeds:
        monkeypatch.setattr(readers, "RANGE", 1 << (seed % 5 + 7))
        monkeypatch.setattr(readers, "ROWS", 1 << (seed % 4 + 3))
        on_s3 = seed % 4 == 0
        root = f"{s3_uri}/{seed}" if on_s3 else str(tmp_path / str(seed))
        try:
            counts["rows"] += check(seed, root, s3)
            check_damaged(seed, root, s3)
        except Exception as error:
            raise AssertionError(f"input {seed} in {root}") from error
        counts["inputs", "s3" if on_s3 else "local", Input(seed).format] += 1
    return counts


def test_some_inputs(tmp_path, s3, s3_uri, monkeypatch):
    fuzz(range(FEW), tmp_path, s3, s3_uri, monkeypatch)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_many_inputs(tmp_path, s3, s3_uri, monkeypatch):
    print(fuzz(range(FEW, FEW + MANY), tmp_path, s3, s3_uri, monkeypatch))
