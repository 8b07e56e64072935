import gzip
import itertools
import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from allmrec.data.jsonl import MALFORMED, column_types, parse, read_lines

WANTED = pa.schema([("id", pa.int64()), ("words", pa.list_(pa.string()))])


def test_good_lines_keep_the_types_of_the_source():
    table = parse(b'{"id": 7, "words": ["a"], "other": {}}\n\n{"words": null, "id": null}\n', WANTED)
    assert table.schema.names == ["id", "words", MALFORMED]
    assert table.to_pylist() == [
        {"id": 7, "words": ["a"], MALFORMED: None},
        {"id": None, "words": None, MALFORMED: None},
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"junk",
        b'{"id": 1',
        b"[1, 2]",
        b'"text"',
        b'{"id": 1} {"id": 2}',
        b'{"words": ["\\ud800"]}',
        b'{"words": ["\xff"]}',
    ],
)
def test_a_bad_line_comes_out_as_its_text_and_spoils_no_other(line):
    lines = [b'{"id": %d}' % number for number in range(200)]
    table = parse(b"\n".join([*lines[:100], line, *lines[100:]]), WANTED)
    rows = table.to_pylist()
    assert rows.pop(100) == {"id": None, "words": None, MALFORMED: line.decode(errors="replace")}
    assert [row["id"] for row in rows] == [str(number) for number in range(200)]
    assert not any(row[MALFORMED] for row in rows)


def test_an_object_broken_over_two_lines_is_two_bad_lines():
    table = parse(b'{"id": 1,\n"words": []}\n{"id": 2} {"id": 3}\n', WANTED)
    assert table.column("id").to_pylist() == [None, None, None]
    assert table.column(MALFORMED).null_count == 0


def test_values_of_another_type_come_as_text():
    table = parse(b'{"id": "A1", "words": "one"}\n{"id": 2, "words": ["b", 3]}\n{"id": [1, "x"]}', WANTED)
    assert table.select(["id", "words"]).to_pylist() == [
        {"id": "A1", "words": ["one"]},
        {"id": "2", "words": ["b", "3"]},
        {"id": "1 x", "words": None},
    ]


def test_types_are_told_from_the_first_lines(tmp_path):
    rows = [
        {"int": 1, "mixed": 1, "real": 1, "flag": True, "list": None, "deep": [["a"]], "object": {}, "big": 2**70},
        {"int": 2, "mixed": "b", "real": 1.5, "flag": None, "list": ["a"], "deep": [], "object": None, "none": None},
    ]
    path = tmp_path / "log.json"
    path.write_text("junk\n" + "\n".join(json.dumps(row) for row in rows))
    text = pa.string()
    assert column_types(LocalFileSystem(), str(path)) == {
        "int": pa.int64(),
        "mixed": text,
        "real": pa.float64(),
        "flag": pa.bool_(),
        "list": pa.list_(text),
        "deep": pa.list_(pa.list_(text)),
        "object": text,
        "big": text,
        "none": text,
    }


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8),
    cuts=st.lists(st.integers(0, 120), max_size=5),
    ends_with_newline=st.booleans(),
)
def test_byte_ranges_deal_every_line_to_exactly_one_piece(tmp_path_factory, lines, cuts, ends_with_newline):
    data = b"\n".join(lines) + b"\n" * ends_with_newline
    path = tmp_path_factory.mktemp("lines") / "log.json"
    path.write_bytes(data)
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    read = [
        line
        for start, stop in itertools.pairwise(bounds)
        for chunk in read_lines(LocalFileSystem(), str(path), start, stop)
        for line in chunk.split(b"\n")
    ]
    assert [line for line in read if line] == [line for line in lines if line]


def test_gzip_is_read_whole(tmp_path):
    data = b"\n".join(b"%d" % number for number in range(1000))
    path = tmp_path / "log.json.gz"
    path.write_bytes(gzip.compress(data))
    assert b"\n".join(read_lines(LocalFileSystem(), str(path), 0, path.stat().st_size)) == data
