"""Partitioning tables by user: rows land in the user's shard, however the table is written; known ids are counted."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.artifacts import commit, shard_name, write_shard
from allmrec.core.hashing import shard_of
from allmrec.core.storage import S3Config
from allmrec.core.workspace import Workspace, open_workspace
from allmrec.data.config import ListConfig, by_suffix
from allmrec.data.sources.lists import open_list
from allmrec.data.sources.source import Source, open_source
from allmrec.nightly.user_tables import CANDIDATES, PartitionRows, Rows, UserRows, WriteRows, rows_of
from schemas import candidates, items, sequences, user_ids

SHARDS = 3
SCORED = [("7", "30", 0.5), ("7", "10", 0.9), ("8", "20", 0.1), ("7", "20", 0.7)]  # in no order
LISTS = {"7": ["10", "20", "30"], "8": ["20"]}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace that knows the users 7, 8 and "9 ", and the items 10, 20 and 30."""
    workspace, ids = open_workspace(str(tmp_path / "workspace")), pa.array(["7", "8", "9 "])
    files = {}
    for shard in range(SHARDS):
        mine = ids.filter(pa.array(shard_of(ids, SHARDS) == shard))
        rows = [{"user_id": id, "item_index": [1], "timestamp": [0], "train_length": 1} for id in mine.to_pylist()]
        table = pa.Table.from_pylist(rows, sequences.SCHEMA)
        files[shard_name(shard)] = write_shard(workspace.sequences, sequences.SCHEMA, shard_name(shard), table)
    commit(workspace.sequences, "sequences", "test", files)
    empty = {**dict.fromkeys(items.SCHEMA.names), "popularity": 0, "interactions": 0, "text_hash": ""}
    rows = [{**empty, "item_id": id, "item_index": n} for n, id in enumerate(["10", "20", "30"], 1)]
    table = pa.Table.from_pylist(rows, items.SCHEMA)
    entry = write_shard(workspace.items, items.SCHEMA, shard_name(0), table)
    commit(workspace.items, "items", "test", {shard_name(0): entry})
    return workspace


def partitioned(source: Source, rows: Rows, schema: pa.Schema, workspace: Workspace) -> tuple[pa.Table, dict[str, int]]:
    """The whole table of all shards, and the sums of the counts."""
    partition = PartitionRows(source, rows, SHARDS)
    pieces = [table for n in range(len(source.pieces)) for table in partition({"id": pa.array([n]).to_numpy()})]
    shuffled = pa.concat_tables(pieces)
    reports = WriteRows(workspace.at("partitioned"), rows, schema, workspace)(
        shuffled.take(pa.array(range(len(shuffled) - 1, -1, -1)))
    )
    tables = []
    for report in reports.to_pylist():
        tables.append(pq.read_table(Path(workspace.storage.uri) / "partitioned" / report["name"], schema=schema))
        assert {*shard_of(tables[-1].column("user_id"), SHARDS).tolist()} <= {int(report["name"][5:10])}
        assert report["rows"] == len(tables[-1])
    counts = {name: sum(report[name] or 0 for report in reports.to_pylist()) for name in reports.column_names[4:]}
    return pa.concat_tables(tables), counts


def external_candidates(path: Path, workspace: Workspace, **config: Any) -> tuple[dict[str, list[str]], dict[str, int]]:
    source = open_source("candidates", ListConfig(**by_suffix([str(path)], {}), **config), S3Config(), CANDIDATES)
    table, counts = partitioned(source, rows_of(source), candidates.SCHEMA, workspace)
    lists: dict[str, list[str]] = {}
    for row in table.to_pylist():
        lists.setdefault(row["user_id"], row["item_ids"])
    return lists, counts


def requested(path: Path, workspace: Workspace) -> tuple[list[str], dict[str, int]]:
    source = open_list("users", ListConfig(**by_suffix([str(path)], {})), "user_id", S3Config())
    table, counts = partitioned(source, UserRows(), user_ids.SCHEMA, workspace)
    return sorted(table.column("user_id").to_pylist()), counts


def test_of_several_lists_of_a_user_the_longest_comes_first(workspace: Workspace, tmp_path: Path) -> None:
    table = pa.table({"user": ["7", None, "7", "unknown"], "item_ids": [["10"], ["10"], ["20", "x"], ["30"]]})
    pq.write_table(table, tmp_path / "in.parquet")
    lists, counts = external_candidates(tmp_path / "in.parquet", workspace, columns={"user_id": "user"})
    assert lists == {"7": ["20", "x"], "unknown": ["30"]}, "the row without a user is left out"
    assert counts == {"listed": 2, "known": 1, "items_listed": 4, "items_known": 3}


LONG = pd.DataFrame(SCORED, columns=["user_id", "item_id", "score"])
ALS = pa.list_(pa.struct([("movie", pa.int32()), ("rating", pa.float32())]))
WIDE = {"user_id": [7, 8], "item_ids": [[10, 20, 30], [20]]}
STRUCTS = [[{"movie": int(item), "rating": 1.0} for item in found] for found in LISTS.values()]
TABLES = {
    "integers": pa.table(WIDE),
    "floats": pa.table({**WIDE, "user_id": [7.0, 8.0]}),
    "categories": pa.table({"user_id": pa.array(["7", "8"]).dictionary_encode(), "item_ids": [*LISTS.values()]}),
    "large lists": pa.table({**WIDE, "item_ids": pa.array(WIDE["item_ids"], pa.large_list(pa.int64()))}),
    "spark als": pa.table({"user_id": [7, 8], "recommendations": pa.array(STRUCTS, ALS)}),
    "implicit": pa.Table.from_pandas(LONG.astype({"user_id": "int32", "item_id": "int32"})),
    "rectools": pa.Table.from_pandas(
        LONG.astype({"user_id": "category", "item_id": "int64"}).assign(
            rank=LONG.groupby("user_id")["score"].rank(ascending=False).astype(int)
        )
    ),
    "scores as text": pa.Table.from_pandas(LONG.astype({"score": str})),
}


@pytest.mark.parametrize("kind", TABLES)
def test_candidates_as_other_systems_write_them(workspace: Workspace, tmp_path: Path, kind: str) -> None:
    pq.write_table(TABLES[kind], tmp_path / "in.parquet")
    columns = {"item_ids": "recommendations"} if kind == "spark als" else {}
    lists, counts = external_candidates(tmp_path / "in.parquet", workspace, columns=columns)
    assert lists == LISTS and counts == {"listed": 2, "known": 2, "items_listed": 4, "items_known": 4}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_candidates_in_text(workspace: Workspace, tmp_path: Path, suffix: str) -> None:
    """Long rows go into any format, a null score comes last."""
    frame = pd.concat([LONG, pd.DataFrame({"user_id": ["8"], "item_id": ["10"], "score": [float("nan")]})])
    path = tmp_path / f"in.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_json(path, orient="records", lines=True)
    if suffix == "csv":
        path.write_text(path.read_text().replace(",\n", ",nan\n"))
    assert external_candidates(path, workspace)[0] == LISTS | {"8": ["20", "10"]}


def test_candidates_that_cannot_be_read_name_column_type_and_fix(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    bad_struct = pa.array([[{"a": 1, "b": 2}]], pa.list_(pa.struct([("a", pa.int32()), ("b", pa.int32())])))
    for table, message in (
        ({"item_ids": ["10"]}, r"'item_ids' is string in .*; it must be a list of ids"),
        (
            {"item_ids": bad_struct},
            r"'item_ids' is list<.*a: int32, b: int32.* structs with a field item_id",
        ),
        ({"item_id": ["10"]}, r"nor item_id with rank or score .* nightly\.candidates\.columns"),
        ({"recommendations": [[10]]}, r"neither a column item_ids .* such as item_ids: recommendations"),
        ({"item_id": ["10"], "score": ["high"]}, r"column 'score' is not all numbers"),
    ):
        pq.write_table(pa.table({"user_id": [7], **table}), path)
        with pytest.raises(ValueError, match=message) as refused:
            external_candidates(path, workspace)
        assert "\n" not in str(refused.value)


def test_lists_of_users_in_any_spelling(workspace: Workspace, tmp_path: Path) -> None:
    """7 is known; 9 only with a blank behind it; new is a stranger who is asked for, without the blank."""
    path = tmp_path / "users.txt"
    path.write_bytes('\ufeff7\r\n"8"\r\n8 \r\n9 \r\n\r\n new\r\n'.encode())
    assert requested(path, workspace) == (
        ["7", "8", "9", "9 ", "new"],
        {"listed": 4, "known": 3, "items_listed": 0, "items_known": 0},
    )
