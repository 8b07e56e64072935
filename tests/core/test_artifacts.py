"""Artifacts: whole or not there, and refused by name when damaged."""

import subprocess
import sys

import pyarrow as pa
import pytest

from allmrec.core.artifacts import (
    MANIFEST,
    file_entry,
    find_manifest,
    from_parquet,
    read_file,
    read_manifest,
    read_table,
    shard_name,
    to_parquet,
    write_shard,
    writing,
)
from allmrec.core.storage import Storage

SCHEMA = pa.schema([pa.field("user_id", pa.string(), nullable=False), pa.field("n", pa.int32())])


def write_table(storage: Storage, values: dict[int, list[int]], fingerprint: str = "step") -> None:
    with writing(storage, "numbers", fingerprint) as out:
        for shard, numbers in values.items():
            table = pa.table({"n": numbers, "user_id": [f"u{n}" for n in numbers], "not in the schema": numbers})
            out.table(shard, SCHEMA, table)
        out.stats["shards"] = len(values)


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


def test_an_artifact_is_valid_only_outside_the_block_that_writes_it(storage: Storage) -> None:
    assert find_manifest(storage) is None
    write_table(storage, {0: [1]})
    with writing(storage, "numbers", "step", {"seed": 1}) as out:
        with pytest.raises(ValueError, match="nothing here yet; run the step"):
            read_table(storage)
        out.file("a.json", b"{}")
        storage.write("b.json", b"[]")  # as a worker does
        out.add({"b.json": file_entry(b"[]")})
        out.stats |= {"n": 2}
        assert find_manifest(storage) is None
    manifest = read_manifest(storage)
    assert manifest == find_manifest(storage)
    assert (list(manifest.files), manifest.config, manifest.stats) == (["a.json", "b.json"], {"seed": 1}, {"n": 2})
    assert [read_file(storage, manifest, name) for name in manifest.files] == [b"{}", b"[]"]


def test_a_block_that_raises_commits_nothing(storage: Storage) -> None:
    write_table(storage, {0: [1], 1: [2]})
    with pytest.raises(OSError, match="disk full"), writing(storage, "numbers", "another step") as out:
        out.table(0, SCHEMA, pa.table({"user_id": ["u9"], "n": [9]}))
        raise OSError("disk full")
    assert find_manifest(storage) is None
    with pytest.raises(ValueError, match="nothing here yet; run the step"):
        read_table(storage)


def test_the_previous_artifact_can_stay_valid_until_the_commit(storage: Storage) -> None:
    write_table(storage, {0: [1]})
    with (
        pytest.raises(OSError, match="disk full"),
        writing(storage, "numbers", "another step", keep_previous=True) as out,
    ):
        out.table(1, SCHEMA, pa.table({"user_id": ["u9"], "n": [9]}))
        raise OSError("disk full")
    assert read_table(storage).column("n").to_pylist() == [1]
    assert read_manifest(storage).fingerprint == "step"


def test_files_of_an_earlier_writer_go_with_the_commit(storage: Storage) -> None:
    write_table(storage, {0: [1], 1: [2], 2: [3]})
    write_table(storage, {0: [1]})
    assert {entry.key for entry in storage.list()} == {MANIFEST, shard_name(0)}


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


_READ = """
from concurrent.futures import ThreadPoolExecutor
import pyarrow as pa
from allmrec.core.artifacts import from_parquet, to_parquet
data = to_parquet(pa.table({"item_id": [f"item-{number}" for number in range(100)], "score": [0.5] * 100}))
with ThreadPoolExecutor(16) as pool:
    assert all(len(table) == 100 for table in pool.map(lambda _: from_parquet(data), range(64)))
"""


def test_a_process_that_has_read_tables_ends_in_order() -> None:
    """Threads of Arrow's that still held Python's bytes when it ended aborted it, now and then."""
    for _ in range(5):
        assert subprocess.run([sys.executable, "-c", _READ], check=False).returncode == 0


def test_columns_come_in_the_order_that_is_asked_for() -> None:
    data = to_parquet(pa.table({"a": [1], "b": [2], "c": [3]}))
    assert from_parquet(data, ["c", "a"]).to_pydict() == {"c": [3], "a": [1]}
    assert from_parquet(data).column_names == ["a", "b", "c"]
    with pytest.raises(KeyError):
        from_parquet(data, ["d"])
