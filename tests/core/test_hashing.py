import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core import hashing
from allmrec.core.hashing import (
    Draw,
    draws,
    fingerprint,
    fingerprint_with,
    hash_strings,
    key64,
    mix64,
    shard_of,
    uniforms,
)

GOLDEN = {
    "": 0xA706DD2F4D197E6F,
    "a": 0xED673BABE737FE57,
    "user-1": 0x1C125577541D3D66,
    "été": 0xE5D65766D43C09C1,
    "12345678": 0xB40A9AE282044B10,
    "123456789": 0x6D3A494E14D5307C,
}


def test_mix64_is_splitmix64():
    with np.errstate(over="ignore"):
        states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # outputs of seed 0
    assert mix64(states).tolist() == published


def test_hashes_never_change():
    assert hash_strings(pa.array(GOLDEN)).tolist() == list(GOLDEN.values())
    assert hash_strings(pa.array(["a"]), seed=1).tolist() == [0x9E80A35248CB6CD7]
    assert shard_of(pa.array(["", "a", "user-1", "été"]), 8).tolist() == [7, 7, 6, 1]
    assert int(key64(1, 2, 3)) == 0xD0734750FDE362B3


@given(strings=st.lists(st.text(max_size=20), max_size=12), first=st.integers(0, 12), cut=st.integers(0, 12))
def test_hashes_do_not_hang_on_slices_chunks_or_types(strings, first, cut):
    whole = hash_strings(pa.array(strings, pa.string()))
    assert hash_strings(pa.array(strings, pa.string()).slice(first)).tolist() == whole[first:].tolist()
    chunks = pa.chunked_array([strings[:cut], [], strings[cut:]], pa.string())
    assert hash_strings(chunks).tolist() == whole.tolist()
    assert hash_strings(pa.array(strings, pa.large_string())).tolist() == whole.tolist()
    assert len(set(whole.tolist())) == len(set(strings))


def test_shards_are_even():
    counts = np.bincount(shard_of(pa.array([f"user-{number}" for number in range(80_000)]), 8))
    assert len(counts) == 8 and counts.min() > 9_600 and counts.max() < 10_400


def test_draws_are_counted_and_keyed():
    hashes = hash_strings(pa.array(["a", "b", "c"]))
    many = draws(hashes, key64(1), 10)
    assert (draws(hashes, key64(1), 4, first=3) == many[:, 3:7]).all()
    assert (draws(hashes[1:2], key64(1), 10) == many[1:2]).all()
    assert len(np.unique(np.concatenate([many, draws(hashes, key64(2), 10)]))) == 60


def test_uniforms_are_uniform():
    values = uniforms(hash_strings(pa.array([str(number) for number in range(1000)])), key64(0), 100)
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations


def test_fingerprints_do_not_hang_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_every_purpose_has_its_own_key():
    keys = {int(key64(7, 3, draw)) for draw in Draw}
    assert len(keys) == len(Draw)
    own = re.compile(r"\b0x[0-9A-F]{4}\b")  # a constant beside the list could be one that is taken
    root = Path(hashing.__file__).parents[1]
    found = [path.name for path in root.rglob("*.py") if path.name != "hashing.py" and own.search(path.read_text())]
    assert found == []


@given(strings=st.lists(st.text(max_size=3), max_size=9))
def test_a_long_list_is_part_of_a_fingerprint_in_blocks(strings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashing, "_BLOCK", 4)
        found = fingerprint_with({"log": [1], "algorithm": None}, "items", pa.array(strings, pa.string()))
    assert found == fingerprint({"log": [1], "algorithm": None, "items": strings})
