import gzip
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.storage import S3Config, open_storage
from allmrec.data.config import DataConfig, SourceConfig
from allmrec.data.prepare.clean import log_columns
from allmrec.data.prepare.items import ITEMS
from allmrec.data.sources import readers
from allmrec.data.sources.lines import MALFORMED, NUMBER
from allmrec.data.sources.source import Column, find_files, open_source

ROWS = [{"user_id": f"u{n}", "item_id": n % 3, "timestamp": n, "page": "x"} for n in range(100)]


COLUMNS = log_columns(DataConfig())
COLUMNS["rating"] = replace(COLUMNS["rating"], read=True)


def opened(paths, format="parquet", s3=None, settings=None, **columns):
    config = SourceConfig(paths=[str(path) for path in paths], format=format, columns=columns, **settings or {})
    return open_source("interactions", config, s3 or S3Config(), COLUMNS)


def read(source):
    tables = [table for piece in source.pieces for table in source.read(piece)]
    return pa.concat_tables(tables, promote_options="default")


def rows_of(source):
    rows = [row for piece in source.pieces for table in source.read(piece) for row in table.to_pylist()]
    return sorted(rows, key=lambda row: row[NUMBER])


def write_parquet(path, rows=ROWS, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def test_parquet_is_cut_at_row_groups_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS", 25)
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
    monkeypatch.setattr(readers, "RANGE", 1000)
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
    row = {"user_id": "u", "item_id": "i", "timestamp": 3, MALFORMED: None, NUMBER: 1}
    assert read(source).to_pylist() == [row]


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
    assert read(opened([f"{s3_uri}/l*/part-?.parquet"], s3=s3)).num_rows == 100
    open_storage(s3_uri, s3).write("csv/day=1/log.csv.gz", gzip.compress(b"user_id,item_id\nu,i\n"))
    assert read(opened([f"{s3_uri}/csv"], "csv", s3, timestamp="day")).column("timestamp").to_pylist() == ["1"]
    with pytest.raises(ValueError, match="no such path: s3://"):
        opened([f"{s3_uri}/nothing"], s3=s3)


def test_parquet_may_hold_bytes_and_bytes_that_are_no_text(tmp_path):
    ids = [b"ok", b"no\xff", None, b"\xc3\xa9"]
    for kind in pa.string(), pa.large_string(), pa.binary(), pa.large_binary():
        large = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
        texts = pa.array(ids, pa.large_binary() if large else pa.binary()).view(kind)
        lists = pa.ListArray.from_arrays([0, 1, 1, 1, 1], pa.array([b"\xff"]).view(pa.string()))
        table = pa.table({"user_id": texts, "item_id": texts, "timestamp": range(4), "words": lists})
        pq.write_table(table, tmp_path / "log.parquet", row_group_size=2)
        rows = rows_of(opened([tmp_path]))
        assert [row["user_id"] for row in rows] == ["ok", None, None, "é"]
        assert rows[1][MALFORMED] == '{"user_id": "no\ufffd", "item_id": "no\ufffd", "timestamp": 1}'
        assert [row[NUMBER] for row in rows if row[MALFORMED] is None] == [1, 3, 4]
    config = SourceConfig(paths=[str(tmp_path)], columns={"item_id": "timestamp", "title": "words"})
    rows = rows_of(open_source("items", config, S3Config(), ITEMS))
    assert rows[0][MALFORMED] == '{"timestamp": 0, "words": ["\ufffd"]}'
    assert [row["item_id"] for row in rows] == [None, 1, 2, 3]


CSV = "timestamp,user_id,item_id\n" + "".join(f'{n},u{n},"{n},x"\n' for n in range(100))


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.csv.zst"])
def test_csv_is_cut_by_bytes_unless_compressed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(readers, "RANGE", 300)
    path = tmp_path / name
    path.write_bytes({"v": bytes, "z": gzip.compress, "t": pa.Codec("zstd").compress}[name[-1]](CSV.encode()))
    source = opened([tmp_path], format="csv")
    assert len(source.pieces) == (1 if name != "log.csv" else -(-len(CSV) // 300))
    table = read(source)
    assert table.column("timestamp").to_pylist() == [str(n) for n in range(100)]
    assert table.column("item_id").to_pylist() == [f"{n},x" for n in range(100)]
    assert table.column(MALFORMED).null_count == 100
    assert table.column(NUMBER)[0].as_py() == 2  # after the header
    assert source.place(source.pieces[-1]) == {"file": str(path), "from_byte": source.pieces[-1].start}


def test_headers_may_differ_and_names_may_be_given(tmp_path):
    (tmp_path / "a.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    (tmp_path / "b.csv").write_text("timestamp,rating,item_id,user_id\n2,4.5,j,v\n")
    rows = read(opened([tmp_path / "b.csv"], format="csv")).to_pylist()
    assert [tuple(row.values())[:4] for row in rows] == [("v", "j", "2", "4.5")]
    rows = read(opened([tmp_path], format="csv")).select(["user_id", "rating"]).to_pylist()
    assert rows == [{"user_id": "u", "rating": None}, {"user_id": "v", "rating": "4.5"}]
    (tmp_path / "a.csv").write_text("u::i::1\n")
    names = {"names": ["who", "item_id", "timestamp"], "delimiter": "::"}
    table = read(opened([tmp_path / "a.csv"], format="csv", settings=names, user_id="who"))
    assert table.to_pylist() == [{"user_id": "u", "item_id": "i", "timestamp": "1", MALFORMED: None, NUMBER: 1}]


def test_newlines_in_values_make_a_file_one_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 10)
    (tmp_path / "log.csv").write_text('user_id,item_id,timestamp\n"u\n1",i,1\nv,i,2\n')
    source = opened([tmp_path], format="csv", settings={"quoted_newlines": True})
    assert len(source.pieces) == 1
    assert read(source).column("user_id").to_pylist() == ["u\n1", "v"]


def test_literals_are_read_as_objects(tmp_path):
    (tmp_path / "log.json").write_text("".join(f"{row!r}\n" for row in ROWS))
    assert read(opened([tmp_path], format="literal")).column("user_id").to_pylist() == [f"u{n}" for n in range(100)]


def test_folders_names_hold_columns(tmp_path):
    for day, event in ("2024-01-01", "view"), ("2024-01-02", "__HIVE_DEFAULT_PARTITION__"):
        rows = [{"user_id": "u", "item_id": "i"}]
        write_parquet(tmp_path / f"log/day={day}/kind={event}/part%200.parquet", rows)
        (tmp_path / f"text/day={day}").mkdir(parents=True)
        (tmp_path / f"text/day={day}/log.json").write_text(json.dumps({"user_id": "u", "item_id": "i"}))
    rows = read(opened([tmp_path / "log"], timestamp="day", rating="kind")).to_pylist()
    assert [(row["timestamp"], row["rating"]) for row in rows] == [("2024-01-01", "view"), ("2024-01-02", None)]
    rows = read(opened([tmp_path / "text"], format="jsonl", timestamp="day")).to_pylist()
    assert [row["timestamp"] for row in rows] == ["2024-01-01", "2024-01-02"]
    rows = read(opened([tmp_path / "text/day=2024-01-02"], format="jsonl", timestamp="day")).to_pylist()
    assert [row["timestamp"] for row in rows] == ["2024-01-02"]
    write_parquet(tmp_path / "log/apart.parquet", rows=[{"user_id": "u", "item_id": "i"}])
    with pytest.raises(ValueError, match=r"'day' is missing in .*apart\.parquet"):
        opened([tmp_path / "log"], timestamp="day")


def test_columns_of_nothing_but_nulls_take_the_type_of_other_files(tmp_path):
    empty = pa.table({name: pa.nulls(0) for name in ("user_id", "item_id", "timestamp", "rating")})
    pq.write_table(empty, write_parquet(tmp_path / "a.parquet"))
    nulls = pa.table({"user_id": ["u"], "item_id": pa.nulls(1), "timestamp": pa.nulls(1), "rating": pa.nulls(1)})
    pq.write_table(nulls, write_parquet(tmp_path / "b.parquet"))
    write_parquet(tmp_path / "c.parquet", [{"user_id": "v", "item_id": "i", "timestamp": 2, "rating": 4.5}])
    source = opened([tmp_path])
    assert [row["item_id"] for row in read(source).to_pylist()] == [None, "i"]
    assert read(source).schema.field("timestamp").type == pa.int64()
    table = read(opened([tmp_path / "b.parquet"]))
    assert table.to_pylist()[0] | {"timestamp": None} == table.to_pylist()[0], "null in every file"
    vectors = pa.table({"user_id": ["u"], "embedding": pa.nulls(1)})
    pq.write_table(vectors, tmp_path / "vectors.parquet")
    wanted = {"user_id": COLUMNS["user_id"], "embedding": Column(True, pa.types.is_list, "a list")}
    with pytest.raises(ValueError, match="'embedding' is null in every row; it must be a list"):
        open_source("users", SourceConfig(paths=[str(tmp_path / "vectors.parquet")]), S3Config(), wanted)


def test_what_is_skipped_in_a_folder_is_counted(tmp_path):
    for name in ("a.parquet", "B.PARQUET", "c/d.Pq", "_SUCCESS", ".a.parquet.crc", "_tmp/x.parquet", "notes.txt"):
        write_parquet(tmp_path / name)
    (tmp_path / "empty.parquet").write_bytes(b"")
    source = opened([tmp_path, tmp_path / "*"])
    assert source.skipped == {"hidden": 3, "other suffix": 1, "empty": 1} and source.rows == 400
    assert opened([tmp_path / "a.parquet"]).skipped == {}


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
        "has no .json or .jsonl or .ndjson": lambda: opened([tmp_path / "good"], format="jsonl"),
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


def test_keys_are_sought_in_all_rows_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "RANGE", 1000)
    rows = [{"user_id": "u", "item_id": "i", "timestamp": number} for number in range(2000)]
    late = [*rows, {**rows[0], "rating": 5, "stars": 4, "sku": "j"}]
    for name, lines in ("a.jsonl", rows), ("b.jsonl", late):
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
    plain = rows_of(opened([tmp_path], "jsonl"))
    assert len(plain) == 4001 and [row["rating"] for row in plain if row["rating"] is not None] == [5]
    mapped = rows_of(opened([tmp_path], "jsonl", rating="stars", item_id="sku"))
    assert [(row["rating"], row["item_id"]) for row in mapped if row["item_id"] is not None] == [(4, "j")]
    with pytest.raises(ValueError, match=r"'asin' is missing in .*a\.jsonl"):
        opened([tmp_path], "jsonl", item_id="asin")


def test_files_without_rows_and_columns_without_values_stop_nothing(tmp_path):
    write_parquet(tmp_path / "parquet/a.parquet", [{"user_id": None, "item_id": None, "timestamp": None}])
    write_parquet(tmp_path / "parquet/b.parquet", [{"user_id": "u", "item_id": 7, "timestamp": 1.5}])
    pq.write_table(pa.table({name: pa.nulls(0) for name in ROWS[0]}), tmp_path / "parquet/c.parquet")
    source = opened([tmp_path / "parquet"])
    found = [row for piece in source.pieces for table in source.read(piece) for row in table.to_pylist()]
    assert [row["user_id"] for row in found] == [None, "u"]
    line = {"jsonl": json.dumps(ROWS[3]), "csv": "user_id,item_id,timestamp\nu3,0,3"}
    for form, text in line.items():
        (tmp_path / form).mkdir()
        (tmp_path / form / f"a.{form}.gz").write_bytes(gzip.compress(b""))
        (tmp_path / form / f"b.{form}").write_text("\n\n")
        (tmp_path / form / f"c.{form}").write_text(text)
        assert [row["user_id"] for row in read(opened([tmp_path / form], form)).to_pylist()] == ["u3"]
        with pytest.raises(ValueError, match="the table is empty"):
            opened([tmp_path / form / f"b.{form}"], form)


def test_a_column_that_is_null_in_one_file_is_there_in_the_type_of_the_others(tmp_path):
    for kind in pa.string_view(), pa.decimal256(60, 2), pa.uuid(), pa.dictionary(pa.int8(), pa.string()):
        rows = {"item_id": ["i", "j"], "timestamp": [1, 2]}
        pq.write_table(pa.table({"user_id": pa.nulls(2, kind), **rows}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"user_id": pa.nulls(2), **rows}), tmp_path / "b.parquet")
        source = opened([tmp_path])
        for table in (table for piece in source.pieces for table in source.read(piece)):
            assert len(table.filter(pa.array([True, False]))) == 1
            assert table.column("user_id").null_count == 2


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_of_two_columns_with_one_name_none_is_chosen(tmp_path, format):
    def written(*names):
        path = tmp_path / f"log.{format}"
        if format == "parquet":
            pq.write_table(pa.table([["a"]] * len(names), list(names)), path)
        else:
            path.write_text(f"{','.join(names)}\n{','.join('a' * len(names))}")
        return path

    source = opened([written("user_id", "item_id", "timestamp", "note", "note")], format)
    assert read(source).num_rows == 1, "what is not read may occur twice"
    with pytest.raises(ValueError, match="'item_id' occurs twice"):
        opened([written("user_id", "item_id", "item_id", "timestamp", "note")], format)
