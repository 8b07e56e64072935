"""The table of text embeddings as a tensor, from memory or from the machine's file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.core import machine_cache, rows
from allmrec.core.artifacts import writing
from allmrec.core.storage import LocalStorage
from allmrec.text.embeddings import check_embedded, read_texts
from schemas.item_text_embeddings import schema


def test_large_tables_are_mapped_and_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, texts_MS = LocalStorage(tmp_path / "texts"), np.random.default_rng(0).random((7, 3), np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(texts_MS.ravel()), 3)
    columns = {"item_id": list("abcdefg"), "text_hash": list("abcdefg"), "encoder": ["e"] * 7, "embedding": lists}
    with writing(storage, "texts", "test") as out:
        for shard, part in enumerate((slice(0, 4), slice(4, 7))):
            out.table(shard, schema(3), pa.table(columns)[part])
    expected_NS = torch.cat([torch.zeros(1, 3), torch.from_numpy(texts_MS)])
    assert torch.equal(read_texts(storage), expected_NS)
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1)
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path / "cache")
    assert torch.equal(read_texts(storage), expected_NS) and len([*(tmp_path / "cache").glob("tables/*/data")]) == 1


def test_embeddings_are_of_the_prepared_texts_whatever_files_they_are_in(tmp_path: Path) -> None:
    def written(name: str, hashes: str, rows: int) -> LocalStorage:
        storage, num = LocalStorage(tmp_path / name), len(hashes)
        columns = {"item_id": list("abcdefg"[:num]), "text_hash": list(hashes), "item_index": np.arange(1, num + 1)}
        with writing(storage, name, "test") as out:
            for shard, first in enumerate(range(0, num, rows)):
                part = pa.table(columns).slice(first, rows)
                out.table(shard, part.schema, part)
        return storage

    items = written("items", "hijklmn", rows=3)
    check_embedded(written("texts", "hijklmn", rows=4), items)
    for wrong in ("hijklmm", "hijklm"):
        with pytest.raises(ValueError, match="does not hold the texts of the items that are prepared; run embed first"):
            check_embedded(written(wrong, wrong, rows=4), items)
