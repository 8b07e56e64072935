"""Every kind of input gives the same from a folder and from S3, compressed or not, whatever its name is made of."""

import gzip
import io
import json
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.core.storage.s3 import Connection, S3Storage
from allmrec.data.config import DataConfig, SourceConfig
from allmrec.data.prepare.clean import log_columns
from allmrec.data.sources.lines import MALFORMED, NUMBER
from allmrec.data.sources.source import open_source
from allmrec.nightly.run_items import item_list
from allmrec.nightly.user_tables import CANDIDATES
from jobs.config import Config
from jobs.prepare import excluded_lists

ROWS = [{"user_id": f"u{n}", "item_id": f"i{n % 3}", "timestamp": str(1_500_000_000 + n)} for n in range(9)]
NAMES = ["log", "log#1", "log?2=3%41 b", "ü😀+&=", "[ab]*"]
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".ZST": partial(pa.Codec("zstd").compress, asbytes=True)}


def written(rows: list[dict], format: str) -> bytes:
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file := io.BytesIO())
        return file.getvalue()
    line = {"jsonl": json.dumps, "literal": repr, "csv": lambda row: ",".join(row.values())}[format]
    header = [",".join(rows[0])] if format == "csv" else []
    return "\n".join([*header, *map(line, rows)]).encode()


def read(uri: str, format: str, s3: S3Config) -> list[dict]:
    config = SourceConfig(paths=[uri], format=format)
    source = open_source("interactions", config, s3, log_columns(DataConfig()))
    rows = [row for piece in source.pieces for table in source.read(piece) for row in table.to_pylist()]
    assert all(row.pop(MALFORMED) is None and row.pop(NUMBER) for row in rows)
    return rows


@pytest.fixture
def where(storage: Storage, request: pytest.FixtureRequest) -> S3Config:
    return request.getfixturevalue("s3") if storage.uri.startswith("s3://") else S3Config()


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl", "literal"])
def test_a_file_is_read_in_every_format_and_compression(storage: Storage, where: S3Config, format: str) -> None:
    suffix = {"literal": ".JSON"}.get(format, f".{format.title()}")
    for compression, compress in COMPRESSIONS.items() if format != "parquet" else [("", bytes)]:
        name = f"a{compression}/log{suffix}{compression}"
        storage.write(name, compress(written(ROWS, format)))
        for path in (name, f"a{compression}", f"a{compression}/*"):
            assert read(f"{storage.uri}/{path}", format, where) == ROWS, path


def test_names_of_files_and_folders_mean_nothing(storage: Storage, where: S3Config) -> None:
    for name in NAMES:
        row = ROWS[0] | {"user_id": name}
        storage.write(f"{name}/{name}.csv", written([row], "csv"))
        for path in (f"{name}/{name}.csv", f"{name}/", f"{name}/*.csv"):
            assert read(f"{storage.uri}/{path}", "csv", where) == [row], path
    assert {row["user_id"] for row in read(storage.uri, "csv", where)} == set(NAMES)
    assert {row["user_id"] for row in read(f"{storage.uri}/*/*.csv", "csv", where)} == set(NAMES)


@pytest.mark.s3
def test_keys_with_empty_parts_are_read(s3: S3Config, s3_uri: str) -> None:
    bucket = S3Storage(s3_uri.split("/")[2], "", Connection(s3))
    for name, format in ("log.csv", "csv"), ("log.jsonl.gz", "jsonl"), ("log.parquet", "parquet"):
        data = written(ROWS, format)
        bucket.write(f"in//day=1//{name}", gzip.compress(data) if name.endswith("gz") else data)
        for path in (f"in//day=1//{name}", "in", "in//", "in//day=1", "in//*/", f"in//day=*//l*{name[3:]}"):
            assert read(f"s3://{bucket.bucket}/{path}", format, s3) == ROWS, path
    bucket.write("/first.csv", written(ROWS, "csv"))
    assert read(f"s3://{bucket.bucket}//first.csv", "csv", s3) == ROWS
    with pytest.raises(ValueError, match="no such path"):
        read(f"s3://{bucket.bucket}/in//day=2", "csv", s3)
    with pytest.raises(ValueError, match=r"empty part \(//\), '\.' or '\.\.'"):
        open_storage(f"s3://{bucket.bucket}//runs", s3)


@pytest.mark.parametrize("format", ["parquet", "csv", "jsonl"])
def test_lists_of_ids_and_candidates_are_read(storage: Storage, where: S3Config, format: str) -> None:
    ids = [{"user_id": row["user_id"], "item_id": row["item_id"]} for row in ROWS]
    storage.write(f"ids.{format}", written(ids, format))
    listed = {"paths": [f"{storage.uri}/ids.{format}"], "format": format}
    data = {"excluded_users": listed, "excluded_items": listed}
    config = Config(name="test", storage=where, data=data, nightly={"blocked_items": listed})
    found = [sorted(ids.spellings.to_pylist()) for ids in excluded_lists(config) if ids]
    assert found == [[row["user_id"] for row in ROWS], ["i0", "i1", "i2"]]
    blocked = item_list(config.nightly, config.storage, "blocked_items")
    assert blocked is not None and sorted(blocked.spellings.to_pylist()) == ["i0", "i1", "i2"]
    if format != "csv":
        storage.write(f"lists.{format}", written([{"user_id": "u1", "item_ids": ["i1"]}], format))
        given = SourceConfig(paths=[f"{storage.uri}/lists.{format}"], format=format)
        assert open_source("candidates", given, where, CANDIDATES).pieces
