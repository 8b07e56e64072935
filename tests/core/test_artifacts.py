"""Artifacts: whole or not there, and refused by name when damaged."""

import pyarrow as pa
import pytest
import torch

from allmrec.core.artifacts import (
    MANIFEST,
    commit,
    invalidate,
    read_manifest,
    read_table,
    read_tensors,
    shard_name,
    write_shard,
    write_tensors,
)
from allmrec.core.storage import Storage

SCHEMA = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("n", pa.int32())])


def write_table(storage: Storage, values: dict[int, list[int]], fingerprint: str = "step") -> None:
    files = {}
    for shard, numbers in values.items():
        table = pa.table({"n": numbers, "user_id": [f"u{n}" for n in numbers], "not in the schema": numbers})
        files[shard_name(shard)] = write_shard(storage, SCHEMA, shard_name(shard), table)
    commit(storage, "numbers", fingerprint, files, stats={"shards": len(files)})


def test_a_table_comes_back_in_its_schema_whole_or_by_shards(storage: Storage) -> None:
    write_table(storage, {0: [1, 2], 1: [], 2: [3]})
    assert read_table(storage).schema == SCHEMA
    assert read_table(storage).column("n").to_pylist() == [1, 2, 3]
    assert read_table(storage, [2, 0]).column("n").to_pylist() == [3, 1, 2]
    manifest = read_manifest(storage)
    assert (manifest.kind, manifest.fingerprint, manifest.rows, manifest.stats) == ("numbers", "step", 3, {"shards": 3})


def test_the_digest_is_of_the_content_alone(storage: Storage) -> None:
    write_table(storage.at("a"), {0: [1], 1: [2]})
    write_table(storage.at("b"), {1: [2], 0: [1]}, fingerprint="another step")
    write_table(storage.at("c"), {0: [1], 1: [3]})
    a, b, c = (read_manifest(storage.at(name)).digest for name in "abc")
    assert a == b != c


def test_nothing_is_there_until_sealed(storage: Storage) -> None:
    write_table(storage, {0: [1]})
    invalidate(storage)
    with pytest.raises(ValueError, match="nothing here yet; run the step"):
        read_table(storage)


def test_damage_is_named(storage: Storage) -> None:
    write_table(storage, {0: [1], 1: [2]})
    data = storage.read(shard_name(1))
    storage.write(shard_name(1), data[:-1] + bytes([data[-1] ^ 1]))
    assert read_table(storage, [0]).num_rows == 1
    with pytest.raises(ValueError, match=r"part-00001\.parquet is damaged"):
        read_table(storage)
    storage.delete(shard_name(1))
    with pytest.raises(ValueError, match=r"part-00001\.parquet is missing"):
        read_table(storage)


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"kind": "num', "is damaged"), (b'{"format": 2}', "format 2 is not known")]
)
def test_a_manifest_that_cannot_be_read_is_named(storage: Storage, content: bytes, message: str) -> None:
    storage.write(MANIFEST, content)
    with pytest.raises(ValueError, match=f"manifest.json.*{message}"):
        read_manifest(storage)


def test_a_table_that_is_not_of_its_schema_is_not_written(storage: Storage) -> None:
    for table, message in (
        (pa.table({"n": [1]}), "column 'user_id' is missing"),
        (pa.table({"user_id": [None], "n": [1]}, SCHEMA.with_metadata(None)), "column 'user_id' holds nulls"),
        (pa.table({"user_id": ["u"], "n": ["one"]}), "column 'n' is string; it must be int32"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shard(storage, SCHEMA, shard_name(0), table)
    assert list(storage.list()) == []


def test_tensors_come_back_bit_for_bit(storage: Storage) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor([1, 2], dtype=torch.int64), "c": torch.randn(2).bfloat16()}
    commit(storage, "weights", "step", {"w.safetensors": write_tensors(storage, "w.safetensors", tensors)})
    back = read_tensors(storage, "w.safetensors")
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    storage.write("w.safetensors", b"x" + storage.read("w.safetensors")[1:])
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged"):
        read_tensors(storage, "w.safetensors")
