"""Tables of Delta Lake and Iceberg are read as they are at one version, and never as a folder of files."""

import builtins
import datetime as dt
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.types import DoubleType

from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.data.config import DataConfig, SourceConfig
from allmrec.data.prepare.clean import log_columns
from allmrec.data.sources import source as sources
from allmrec.data.sources.files import InputFile
from allmrec.data.sources.lines import NUMBER
from allmrec.data.sources.snapshots import Layout, Snapshot
from allmrec.data.sources.source import Source, find_files, open_source

LOG = pa.table(
    {
        "user_id": ["a", "b", "c", "d"],
        "item_id": [1, 2, 3, 4],
        "timestamp": [10, 20, 30, 40],
        "event": ["view/1", "buy #%", None, "view/1"],
        "day": pa.array([dt.date(2024, 1, 1), dt.date(2024, 1, 2), None, dt.date(2024, 1, 1)]),
    }
)
COLUMNS = {name: replace(column, read=True, required=False) for name, column in log_columns(DataConfig()).items()}
COLUMNS["user_id"] = replace(COLUMNS["user_id"], required=True)


def opened(uri: Any, s3: S3Config | None = None, version: int | None = None, **columns: str) -> Source:
    config = SourceConfig(paths=[str(uri)], version=version, columns=columns)
    return open_source("interactions", config, s3 or S3Config(), COLUMNS)


def rows(source: Source) -> list[tuple]:
    names = [name for name in ("user_id", "item_id", "timestamp", "event") if name in source.fields.names]
    tables = [table.select(names) for piece in source.pieces for table in source.read(piece)]
    return sorted((tuple(row.values()) for table in tables for row in table.to_pylist()), key=str)


def uploaded(folder: Path, storage: Storage) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            storage.write(f"table/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"{storage.uri}/table"


@pytest.fixture
def where(storage: Storage, request: pytest.FixtureRequest) -> S3Config:
    return request.getfixturevalue("s3") if storage.uri.startswith("s3://") else S3Config()


def test_the_live_files_of_delta_lake_are_read(tmp_path: Path, storage: Storage, where: S3Config) -> None:
    table = tmp_path / "made"
    write_deltalake(table, LOG, partition_by=["event", "day"])
    DeltaTable(table).delete("user_id = 'a'")
    more = LOG.slice(1, 1).append_column("rating", pa.array([4.5]))
    write_deltalake(table, more, mode="append", schema_mode="merge")
    uri = uploaded(table, storage)
    now = opened(uri, where)
    left = [("b", 2, 20, "buy #%"), ("c", 3, 30, None), ("d", 4, 40, "view/1")]
    assert rows(now) == sorted([*left, left[0]], key=str)
    assert now.versions == {uri: "2"} and now.fields.field("rating").type == pa.float64()
    assert rows(opened(uri, where, timestamp="day"))[-1] == ("d", 4, "2024-01-01", "view/1")
    assert rows(opened(uri, where, version=0)) == sorted([("a", 1, 10, "view/1"), *left], key=str)
    with pytest.raises(ValueError, match="has no version 9; its log has 0 to 2"):
        opened(uri, where, version=9)


def test_a_version_keeps_the_files_of_the_one_before(tmp_path: Path) -> None:
    config = SourceConfig(paths=[str(tmp_path)])
    write_deltalake(tmp_path, LOG)
    before = find_files("interactions", config, S3Config())
    write_deltalake(tmp_path, LOG, mode="append")
    after = find_files("interactions", config, S3Config())
    assert {file.version for file in after} == {"1"} and len(after) == 2, "the step's identity is another"
    assert [file.content for file in after if file in before or file.uri == before[0].uri] == [before[0].content]
    DeltaTable(tmp_path).delete("user_id = 'a'")
    after = find_files("interactions", config, S3Config())
    assert before[0].content not in [file.content for file in after]


def test_a_long_log_is_replayed_from_its_checkpoint(tmp_path: Path) -> None:
    for number in range(4):
        write_deltalake(tmp_path, LOG.slice(number, 1), mode="append")
        if number == 1:
            DeltaTable(tmp_path).create_checkpoint()
    (tmp_path / "_delta_log" / f"{0:020}.json").unlink()
    assert [row[0] for row in rows(opened(tmp_path))] == ["a", "b", "c", "d"]
    assert [row[0] for row in rows(opened(tmp_path, version=2))] == ["a", "b", "c"]


def test_renamed_columns_of_delta_lake_go_by_their_names_in_files(tmp_path: Path) -> None:
    write_deltalake(tmp_path, LOG.select(["user_id", "item_id", "timestamp", "event"]), partition_by=["event"])
    log = tmp_path / "_delta_log" / f"{0:020}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines() if line]
    for action in actions:
        if "protocol" in action:
            action["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
        if "metaData" in action:
            schema = json.loads(action["metaData"]["schemaString"])
            for number, field in enumerate(schema["fields"]):
                mapping = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": field["name"]}
                field.update(metadata=mapping, name=f"new_{field['name']}")
            action["metaData"].update(schemaString=json.dumps(schema), partitionColumns=["new_event"])
            action["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
    log.write_text("\n".join(map(json.dumps, actions)))
    new = {name: f"new_{name}" for name in ("user_id", "item_id", "timestamp", "event")}
    assert rows(opened(tmp_path, **new))[0] == ("a", 1, 10, "view/1")
    with pytest.raises(ValueError, match="'user_id' is missing in"):
        opened(tmp_path)


def test_deletion_vectors_are_refused(tmp_path: Path) -> None:
    write_deltalake(tmp_path, LOG)
    (file,) = tmp_path.glob("*.parquet")
    vector = {
        "storageType": "u",
        "pathOrInlineDv": "vBn[lx{q8@P<9BNH/isA",
        "offset": 1,
        "sizeInBytes": 36,
        "cardinality": 2,
    }
    add = {"path": file.name, "partitionValues": {}, "size": file.stat().st_size, "modificationTime": 0}
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    actions = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
        {"remove": {"path": file.name, "deletionTimestamp": 1, "dataChange": True}},
        {"add": {**add, "dataChange": True, "deletionVector": vector}},
    ]
    commit = tmp_path / "_delta_log" / f"{1:020}.json"
    commit.write_text("\n".join(map(json.dumps, actions)))
    with pytest.raises(ValueError, match=r"deletion vectors mark rows of version 1 .*REORG TABLE") as refused:
        opened(tmp_path)
    assert "\n" not in str(refused.value)
    commit.write_text("\n".join(map(json.dumps, [actions[0], {"commitInfo": {}}])))
    assert len(rows(opened(tmp_path))) == 4, "a table that may have them, and has none"


@pytest.fixture
def catalogue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[SqlCatalog, S3Config]]:
    """A catalogue of Iceberg on a folder, or on S3."""
    s3, uri, properties = S3Config(), f"file://{tmp_path}/lake", {}
    if request.param == "s3":
        s3, uri = request.getfixturevalue("s3"), request.getfixturevalue("plain_s3_uri")
        properties = {"s3.endpoint": str(s3.endpoint_url), "s3.region": "us-east-1"}
    catalog = SqlCatalog("test", uri="sqlite:///:memory:", warehouse=uri, **properties)
    catalog.create_namespace("shop")
    yield catalog, s3
    catalog.close()


on_both = pytest.mark.parametrize("catalogue", ["local", pytest.param("s3", marks=pytest.mark.s3)], indirect=True)


@on_both
def test_a_snapshot_of_iceberg_is_read(catalogue: tuple[SqlCatalog, S3Config]) -> None:
    catalog, s3 = catalogue
    table = catalog.create_table("shop.log", LOG.schema)
    with pytest.raises(ValueError, match="interactions: the table is empty"):
        opened(table.location(), s3)
    with table.update_spec() as spec:
        spec.add_identity("event")
    table.append(LOG)
    first = table.current_snapshot().snapshot_id
    with table.update_schema() as schema:  # names change places, which only the numbers of fields tell
        schema.rename_column("item_id", "sku")
        schema.rename_column("timestamp", "item_id")
        schema.add_column("rating", DoubleType())
    table.append(pa.table({"user_id": ["e"], "sku": [5], "item_id": [50], "event": ["x"], "rating": [4.5]}))
    table.delete("user_id = 'a'")
    source = opened(table.location(), s3, timestamp="item_id", item_id="sku")
    left = [("b", 2, 20, "buy #%"), ("c", 3, 30, None), ("d", 4, 40, "view/1"), ("e", 5, 50, "x")]
    assert rows(source) == left
    assert source.versions == {table.location(): str(table.current_snapshot().snapshot_id)}
    assert rows(opened(table.metadata_location, s3, timestamp="item_id", item_id="sku")) == left
    assert rows(opened(table.location(), s3, first)) == [("a", 1, 10, "view/1"), *left[:3]]
    with pytest.raises(ValueError, match="has no snapshot 7; those in"):
        opened(table.location(), s3, 7)


@pytest.mark.parametrize("catalogue", ["local"], indirect=True)
def test_files_that_iceberg_took_over_go_by_names_and_partitions(catalogue: Any, tmp_path: Path) -> None:
    table = catalogue[0].create_table("shop.log", LOG.schema)
    with table.update_spec() as spec:
        spec.add_identity("event").add_identity("day")
    folder = tmp_path / "event=x" / "day=2024-01-01"
    folder.mkdir(parents=True)
    pq.write_table(LOG.slice(0, 1).set_column(3, "event", pa.array(["x"])), folder / "old.parquet")
    table.add_files([f"file://{folder}/old.parquet"])
    assert rows(opened(table.location())) == [("a", 1, 10, "x")]


@pytest.mark.parametrize("catalogue", ["local"], indirect=True)
def test_what_only_a_catalogue_knows_is_asked_for(catalogue: Any) -> None:
    table = catalogue[0].create_table("shop.log", LOG.schema)
    table.append(LOG)
    path = Path(table.metadata_location.removeprefix("file://"))
    rival = path.with_name(f"{path.name[:5]}-rival.metadata.json")
    rival.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"only the table's catalogue knows which .* is current; name that file"):
        opened(table.location())
    path.with_name("version-hint.text").write_text(path.name.removesuffix(".metadata.json"))
    assert len(rows(opened(table.location()))) == 4


def test_deleted_positions_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        pq.write_table(LOG, tmp_path / f"{name}.parquet", row_group_size=2)
    deletes = pa.table({"file_path": ["s3a://x/a", "s3a://x/b", "s3a://x/a"], "pos": [0, 1, 3]})
    pq.write_table(deletes, tmp_path / "deletes.parquet")
    names = {name: name for name in LOG.column_names}
    files, layouts = [], {}
    for name in ("a", "b"):
        uri = str(tmp_path / f"{name}.parquet")
        files.append(InputFile(uri, 1, 0))
        layouts[uri] = lambda _, name=name: Layout(names, {}, (str(tmp_path / "deletes.parquet"),), f"s3a://x/{name}")
    snapshot = Snapshot(tuple(files), tuple(names), layouts, "1")
    monkeypatch.setattr(sources, "open_snapshot", lambda *_: snapshot)
    (tmp_path / "table" / "_delta_log").mkdir(parents=True)
    source = opened(tmp_path / "table")
    assert [row[0] for row in rows(source)] == ["a", "b", "c", "c", "d"]
    numbers = [
        number for piece in source.pieces for table in source.read(piece) for number in table[NUMBER].to_pylist()
    ]
    assert numbers == [2, 3, 1, 3, 4]


def test_a_table_is_never_read_as_files(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "lake/log", LOG, partition_by=["event"])
    pq.write_table(LOG, tmp_path / "lake/other.parquet")
    for path in ("lake", "lake/log/*/*.parquet", "lake/log/event=*/", "lake/**/*.parquet", "lake/log/event=view%2F1"):
        with pytest.raises(ValueError, match=r"has files of a table of Delta Lake, .*lake/log; name the folder"):
            opened(tmp_path / path)
    assert len(rows(opened(tmp_path / "lake/l*"))) == len(rows(opened(tmp_path / "lake/log"))) == 4
    with pytest.raises(ValueError, match="is a table of Delta Lake: its format is parquet here, not jsonl"):
        find_files("interactions", SourceConfig(paths=[str(tmp_path / "lake/log")], format="jsonl"), S3Config())
    with pytest.raises(ValueError, match="version is that of one table"):
        opened(tmp_path / "lake/other.parquet", version=3)
    (tmp_path / "hudi/.hoodie").mkdir(parents=True)
    pq.write_table(LOG, tmp_path / "hudi/part.parquet")
    with pytest.raises(ValueError, match=r"is a table of Hudi, which is not read; export .* as Parquet"):
        opened(tmp_path / "hudi")
    pq.write_table(LOG, tmp_path / "lake/log/extra.parquet")
    (tmp_path / "lake/log/_delta_log" / f"{0:020}.json").write_text("junk")
    with pytest.raises(ValueError, match="cannot read version 0 of the table") as error:
        opened(tmp_path / "lake/log")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("mark", "extra"), [("_delta_log/x.json", "delta"), ("metadata/v1.metadata.json", "iceberg")])
def test_a_library_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: Any, mark: str, extra: str) -> None:
    open_storage(str(tmp_path)).write(mark, b"{}")
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("deltalake", "pyiceberg"):
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, f"allmrec.data.sources.{extra}", raising=False)
    with pytest.raises(ValueError, match=rf"not installed: pip install 'allmrec\[{extra}\]'"):
        opened(tmp_path)
