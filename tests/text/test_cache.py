"""The cache of embeddings: what is written is found, by text and encoder, and nothing that is damaged is read."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.core.columns import to_lists
from allmrec.core.hashing import hash_strings
from allmrec.core.storage import open_storage
from allmrec.text.cache import TextCache


def vectors(*numbers: int) -> pa.Array:
    return to_lists(np.array([[number, -number] for number in numbers], np.float32))


def found(cache: TextCache, *hashes: str) -> list[list[float] | None]:
    index = cache.index()
    file, row = index.find(hash_strings(pa.array(hashes, pa.string())))
    return [
        cache.read(index.files[f])["embedding"][int(r)].as_py() if f >= 0 else None
        for f, r in zip(file, row, strict=True)
    ]


def test_an_empty_cache_knows_nothing(tmp_path):
    assert found(TextCache.of(open_storage(str(tmp_path)), "sbert"), "a") == [None]


@settings(deadline=None, max_examples=30)  # files are flushed to the disk
@given(blocks=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True), max_size=5))
def test_what_is_written_is_found(tmp_path_factory, blocks):
    cache = TextCache.of(open_storage(str(tmp_path_factory.mktemp("cache"))), "sbert")
    for block in blocks:
        cache.write(pa.array([str(number) for number in block]), vectors(*block))
    known = {number for block in blocks for number in block}
    expected = [[float(number), float(-number)] if number in known else None for number in range(31)]
    assert found(cache, *(str(number) for number in range(31))) == expected


def test_each_encoder_has_its_own(tmp_path):
    storage = open_storage(str(tmp_path))
    TextCache.of(storage, "sbert").write(pa.array(["a"]), vectors(1))
    assert found(TextCache.of(storage, "sbert"), "a") == [[1, -1]]
    assert found(TextCache.of(storage, "sbert, fine-tuned"), "a") == [None]


def test_equal_content_is_one_file_and_damage_is_named(tmp_path):
    cache = TextCache.of(open_storage(str(tmp_path)), "sbert")
    name = cache.write(pa.array(["a"]), vectors(1))
    assert cache.write(pa.array(["a"]), vectors(1)) == name and len(list(cache.storage.list())) == 1
    data = cache.storage.read(name)
    cache.storage.write(name, data + b" ")
    with pytest.raises(ValueError, match=f"{name} is damaged; delete it"):
        cache.read(name)
    cache.storage.write(name, b"")  # no Parquet: as if it were not there
    assert found(cache, "a") == [None]
