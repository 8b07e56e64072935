"""Which items a model was trained on: the digests of stored catalogues, whatever files they are in."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from allmrec.core import artifacts
from allmrec.core.artifacts import Manifest, read_table, writing
from allmrec.core.hashing import hash_strings
from allmrec.core.storage import LocalStorage, Storage
from allmrec.data.catalogue import (
    UNTITLED,
    Catalogue,
    is_untitled,
    read_drawable,
    read_titles,
    some_titles,
)
from allmrec.data.trained_items import (
    check_trained_on,
    ids_digest,
    read_trained_items,
    stored_ids_digest,
    words_digest,
    write_trained_items,
)
from schemas import items

NUM = 11
TITLES = ["One", None, *(f"Title\n{number}" for number in range(3, NUM + 1))]


def stored(folder: Path, num: int = NUM, rows: int = 4, titles: list[str | None] = TITLES) -> Storage:
    """The first `num` items, in files of some rows."""
    numbers = np.arange(1, num + 1)
    columns = {
        "item_id": [f"i{number}" for number in numbers],
        "title": pa.array(titles[:num], pa.string()),
        "item_index": numbers,
        "popularity": numbers % 3,
        "interactions": numbers % 4,
        "text_hash": [f"hash {number}" for number in numbers],
    }
    blank = {field.name: pa.nulls(num, field.type) for field in items.SCHEMA}
    table, storage = pa.table(blank | columns), LocalStorage(folder)
    with writing(storage, "items", "by hand") as out:
        for file, first in enumerate(range(0, num, rows)):
            out.table(file, items.SCHEMA, table.slice(first, rows))
    return storage


def test_a_stored_catalogue_is_read_by_columns(tmp_path: Path) -> None:
    storage = stored(tmp_path)
    catalogue = Catalogue.read(storage, texts=True)
    assert read_titles(storage).equals(catalogue.titles) and catalogue.titles[2].as_py() == UNTITLED
    assert read_drawable(storage).dtype == catalogue.drawable.dtype
    assert read_drawable(storage).tolist() == catalogue.drawable.tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    assert some_titles(storage, 100).equals(catalogue.titles)
    chosen = [0, *np.linspace(1, NUM, 3).astype(np.int64)]
    assert some_titles(storage, 3).equals(catalogue.titles.take(pa.array(chosen)))
    assert not is_untitled(storage) and is_untitled(stored(tmp_path / "none", titles=[None, " "] * NUM))


def test_digests_are_those_of_whole_columns(tmp_path: Path) -> None:
    storage, one_file = stored(tmp_path / "several"), stored(tmp_path / "one", rows=NUM)
    table = read_table(storage)
    assert stored_ids_digest(storage) == stored_ids_digest(one_file) == ids_digest(table)
    columns = (pc.fill_null(table.column(name), "") for name in ("item_id", "title", "text_hash"))
    expected = hashlib.sha256(b"".join(hash_strings(column).tobytes() for column in columns)).hexdigest()
    assert words_digest(storage) == words_digest(one_file) == expected


def test_a_model_knows_its_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, model = stored(tmp_path / "items"), LocalStorage(tmp_path / "model")
    with writing(model, "model", "by hand") as out:
        out.add(write_trained_items(model, storage))
    assert read_trained_items(model).column("item_id").equals(read_table(storage).column("item_id"))
    with pytest.raises(ValueError, match="was trained on other items than those that are prepared"):
        check_trained_on(model, stored(tmp_path / "fewer", num=NUM - 1))

    read, requested = artifacts.read_part, list[list[str]]()

    def noted(storage: Storage, manifest: Manifest, name: str, columns: list[str] | None = None) -> pa.Table:
        requested.append(list(columns or items.SCHEMA.names))
        return read(storage, manifest, name, columns)

    monkeypatch.setattr(artifacts, "read_part", noted)
    check_trained_on(model, storage)
    assert requested == [["item_index", "item_id"]] * 3, "one file after the other, and nothing but ids"
