import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.data import sources
from allmrec.data.clean import INTERACTIONS
from allmrec.data.config import SourceConfig
from allmrec.data.jsonl import MALFORMED
from allmrec.data.sources import find_files, open_source
from allmrec.storage import S3Config, open_storage

ROWS = [{"user_id": f"u{n}", "item_id": n % 3, "timestamp": n, "page": "x"} for n in range(100)]


def opened(paths, format="parquet", s3=None, **columns):
    config = SourceConfig(paths=[str(path) for path in paths], format=format, columns=columns)
    return open_source("interactions", config, s3 or S3Config(), INTERACTIONS)


def read(source):
    return pa.concat_tables([table for piece in source.pieces for table in source.read(piece)])


def write_parquet(path, rows=ROWS, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_parquet_is_cut_at_row_groups_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_ROWS", 25)
    source = opened([write_parquet(tmp_path / "log.parquet", row_group_size=10)])
    assert [(piece.start, piece.stop, piece.rows) for piece in source.pieces] == [
        (0, 2, 20),
        (2, 4, 20),
        (4, 6, 20),
        (6, 8, 20),
        (8, 10, 20),
    ]
    assert source.rows == 100
    assert read(source).select(["user_id", "item_id", "timestamp"]).to_pylist() == [
        {key: row[key] for key in ("user_id", "item_id", "timestamp")} for row in ROWS
    ]


def test_json_lines_are_cut_by_bytes_unless_gzipped(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_RANGE", 1000)
    text = "\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(text.encode()))
    source = opened([tmp_path], format="jsonl")
    assert len(source.pieces) == -(-len(text) // 1000) + 1
    assert source.rows is None
    assert read(source).column("timestamp").to_pylist() == [*range(100), *range(100)]


def test_columns_are_mapped(tmp_path):
    rows = [{"who": "u", "asin": "i", "when": 3, "user_id": "not this one"}]
    source = opened([write_parquet(tmp_path / "log.parquet", rows)], user_id="who", item_id="asin", timestamp="when")
    assert read(source).to_pylist() == [{"user_id": "u", "item_id": "i", "timestamp": 3, MALFORMED: None}]


def test_an_optional_column_may_be_missing_in_some_files(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"user_id": "u", "item_id": "i", "timestamp": 1}])
    write_parquet(tmp_path / "b.parquet", [{"user_id": "v", "item_id": "i", "timestamp": 2, "rating": 4.5}])
    assert read(opened([tmp_path])).column("rating").to_pylist() == [None, 4.5]


def test_a_folder_gives_its_data_files_by_name(tmp_path):
    for name in ("b.parquet", "a/day=1/c.parquet", "_temporary/d.parquet", ".hidden.parquet", "notes.txt"):
        write_parquet(tmp_path / name)
    files = find_files("interactions", SourceConfig(paths=[str(tmp_path), str(tmp_path / "b.parquet")]), S3Config())
    assert [file.uri.removeprefix(str(tmp_path)) for file in files] == ["/a/day=1/c.parquet", "/b.parquet"]
    assert all(file.size and file.modified for file in files)


def test_s3_is_read_like_a_folder(s3, s3_uri, tmp_path):
    data = write_parquet(tmp_path / "log.parquet").read_bytes()
    open_storage(s3_uri, s3).write("logs/part-0.parquet", data)
    assert read(opened([f"{s3_uri}/logs/"], s3=s3)).num_rows == 100
    assert read(opened([f"{s3_uri}/logs/part-0.parquet"], s3=s3)).num_rows == 100
    with pytest.raises(ValueError, match="no such path: s3://"):
        opened([f"{s3_uri}/nothing"], s3=s3)


def test_what_users_get_wrong_is_named_in_one_line(tmp_path):
    good = write_parquet(tmp_path / "good" / "log.parquet")
    empty = write_parquet(tmp_path / "empty" / "log.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), empty)
    lists = write_parquet(tmp_path / "lists.parquet", [{"user_id": ["u"], "item_id": "i", "timestamp": 1}])
    text = tmp_path / "text.parquet"
    text.write_text("no Parquet")
    junk = tmp_path / "junk.json"
    junk.write_text("junk\n[1]\n")
    damaged = tmp_path / "damaged.json.gz"
    damaged.write_bytes(b"no gzip")
    nothing = tmp_path / "nothing.json"
    nothing.write_text("")
    for message, call in {
        "paths is empty": lambda: opened([]),
        f"interactions: no such path: {tmp_path}/absent": lambda: opened([tmp_path / "absent"]),
        "holds no .json or .jsonl": lambda: opened([tmp_path / "good"], format="jsonl"),
        "'asin' is missing in": lambda: opened([good], item_id="asin"),
        "which has user_id, item_id, timestamp, page": lambda: opened([good], item_id="asin"),
        "data.interactions.columns.item_id": lambda: opened([good], item_id="asin"),
        "'stars' is missing in": lambda: opened([good], rating="stars"),
        "'user_id' is list": lambda: opened([lists]),
        "the table is empty": lambda: opened([empty]),
        "interactions: the table is empty": lambda: opened([nothing], format="jsonl"),
        f"cannot read {text} as parquet": lambda: opened([text]),
        f"cannot read {junk} as jsonl": lambda: opened([junk], format="jsonl"),
        f"cannot read {damaged}": lambda: opened([damaged], format="jsonl"),
    }.items():
        with pytest.raises(ValueError, match=message.replace(".", r"\.")) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_gzip_file_cut_short_is_named(tmp_path):
    path = tmp_path / "log.json.gz"
    rows = "\n".join(json.dumps({**row, "page": str(number) * 9}) for number, row in enumerate(ROWS * 50))
    whole = gzip.compress(rows.encode())
    path.write_bytes(whole)
    source = opened([path], format="jsonl")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"interactions: cannot read {path}"):
        read(source)
