import json

import pyarrow as pa
import pytest

from allmrec.data.sources.jsonl import column_types, load_json, load_literal, parse_json, parse_literals, parse_singly
from allmrec.data.sources.lines import MALFORMED, NUMBER, Lines

WANTED = pa.schema([("id", pa.int64()), ("words", pa.list_(pa.string()))])


def parse(text):
    return parse_json(Lines.of(text), WANTED).sort_by(NUMBER)


def test_good_lines_keep_the_types_of_the_source():
    table = parse(b'{"id": 7, "words": ["a"], "other": {}}\n\n{"words": null, "id": null}\r\n')
    assert table.schema.names == ["id", "words", MALFORMED, NUMBER]
    assert table.to_pylist() == [
        {"id": 7, "words": ["a"], MALFORMED: None, NUMBER: 1},
        {"id": None, "words": None, MALFORMED: None, NUMBER: 3},
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
        b'{"words": ' + b"[" * 5000,
    ],
)
def test_a_bad_line_comes_out_as_its_text_and_damages_no_other(line):
    lines = [b'{"id": %d}' % number for number in range(200)]
    table = parse(b"\n".join([*lines[:100], line, *lines[100:]]))
    rows = table.to_pylist()
    bad = {"id": None, "words": None, MALFORMED: line.decode(errors="replace"), NUMBER: 101}
    assert rows.pop(100) == bad
    assert [row["id"] for row in rows] == [str(number) for number in range(200)]
    assert [row[NUMBER] for row in rows] == [number for number in range(1, 202) if number != 101]
    assert not any(row[MALFORMED] for row in rows)


def test_an_object_broken_over_two_lines_is_two_bad_lines():
    table = parse(b'{"id": 1,\n"words": []}\n{"id": 2} {"id": 3}\n')
    assert table.column("id").to_pylist() == [None, None, None]
    assert table.column(MALFORMED).null_count == 0


def test_values_of_another_type_come_as_text():
    table = parse(b'{"id": "A1", "words": "one"}\n{"id": 2, "words": ["b", 3]}\n{"id": [1, "x"]}')
    assert table.select(["id", "words"]).to_pylist() == [
        {"id": "A1", "words": ["one"]},
        {"id": "2", "words": ["b", "3"]},
        {"id": "1 x", "words": None},
    ]


def test_types_are_told_from_the_first_lines():
    rows = [
        {"int": 1, "mixed": 1, "real": 1, "flag": True, "list": None, "deep": [["a"]], "object": {}, "big": 2**70},
        {"int": 2, "mixed": "b", "real": 1.5, "flag": None, "list": ["a"], "deep": [], "object": None, "none": None},
    ]
    text = pa.string()
    types = {
        "int": pa.int64(),
        "mixed": text,
        "real": pa.float64(),
        "flag": pa.bool_(),
        "list": pa.list_(text),
        "deep": pa.list_(pa.list_(text)),
        "object": text,
        "big": text,
        "none": pa.null(),
    }
    assert column_types([b"junk", *(json.dumps(row).encode() for row in rows)], load_json) == types
    rare = [b'{"id": "a", "words": ["b", "c"]}', b'{"id": ["a"], "words": "b"}', b'{"id": 1, "words": [[1]]}']
    assert column_types(rare, load_json) == {"id": text, "words": pa.list_(pa.list_(text))}
    assert column_types([b"junk", *(repr(row).encode() for row in rows)], load_literal) == types


def test_python_literals_are_read_and_nothing_is_run(tmp_path):
    good = [
        "{'id': 7, 'words': ['it\\'s', u'caf\\xe9'], 'salesRank': {'Beauty': 3}, 'price': 1.5}",
        "{'words': None, \"id\": '0\\d7', }",
    ]
    target = tmp_path / "made by a line"
    bad = [
        f"__import__('pathlib').Path({str(target)!r}).touch()",
        f"{{'id': __import__('pathlib').Path({str(target)!r}).touch()}}",
        '{"id": true}',
        "{'id': 1} # and {[]: 2}",
        "{[]: 1}",
        "{'id': {1, 2}}",
        "{'id': b'x'}",
        "{'id': " + "(" * 10_000,
        "{'id': " + "-" * 100_000 + "1}",
        "{'words': ['\\ud800']}",
        "[]",
        "{'id': 1\x00}",
    ]
    bad.remove("{'id': 1} # and {[]: 2}")  # a comment is Python, and the line before it good
    table = parse_singly(Lines.of("\n".join([*good, *bad]).encode()), WANTED, load_literal)
    rows = table.to_pylist()
    assert [(row["id"], row["words"]) for row in rows[:2]] == [("7", ["it's", "café"]), ("0\\d7", None)]
    assert [row[MALFORMED] for row in rows[2:]] == bad
    assert not target.exists()


UNKNOWN = pa.schema([(name, pa.null()) for name in ("flag", "words", "real", "missing")])


@pytest.mark.parametrize("bad", [[], ["junk"]])
def test_a_key_that_comes_late_is_read_with_its_type(bad):
    rows = [{"id": number} for number in range(2500)]
    rows[2400] |= {"flag": False, "words": ["a", "b"], "real": 1.5}
    lines = [*map(json.dumps, rows), *bad]
    table = parse_json(Lines.of("\n".join(lines).encode()), UNKNOWN).sort_by(NUMBER)
    kinds = {"flag": pa.bool_(), "words": pa.list_(pa.string()), "real": pa.float64(), "missing": pa.null()}
    late = {"flag": False, "words": ["a", "b"], "real": 1.5, "missing": None}
    if bad:  # plain values as text, in this company
        late |= {"flag": "false", "real": "1.5"}
    else:
        assert dict(zip(table.schema.names, table.schema.types, strict=True)).items() >= kinds.items()
    found = table.select(UNKNOWN.names).to_pylist()
    assert found[2400] == late
    assert all(value is None for row in found[:2400] for value in row.values())
    literals = parse_literals(Lines.of("\n".join(map(repr, rows)).encode()), UNKNOWN).select(UNKNOWN.names).to_pylist()
    assert literals[2400] == {"flag": "false", "words": ["a", "b"], "real": "1.5", "missing": None}


def test_numbers_that_are_none_are_null():
    wanted = pa.schema([("real", pa.float64()), ("text", pa.string()), ("words", pa.list_(pa.string()))])
    lines = b'{"real": NaN, "text": NaN, "words": [NaN, "a"]}\n{"real": -Infinity, "text": "NaN"}\n{"real": 1.5}'
    expected = [(None, None, [None, "a"]), (None, "NaN", None), ("1.5", None, None)]
    found = parse_json(Lines.of(lines), wanted).select(wanted.names).to_pylist()
    assert [tuple(row.values()) for row in found] == expected
    literals = lines.replace(b"NaN,", b"nan,").replace(b"NaN}", b"nan}").replace(b"-Infinity", b"-inf")
    found = parse_literals(Lines.of(literals), wanted).select(wanted.names).to_pylist()
    assert [tuple(row.values()) for row in found] == expected
    whole = parse_json(Lines.of(b'{"real": Infinity}\n{"real": NaN}\n{"real": 2}'), pa.schema([wanted.field(0)]))
    assert whole.column("real").to_pylist() == [None, None, 2.0]
    told = column_types(
        [b'{"a": NaN, "b": 1}', b'{"a": 1, "b": 1.5}', b'{"c": 1.5}', b'{"c": 9007199254740993}'], load_json
    )
    assert told == {"a": pa.int64(), "b": pa.float64(), "c": pa.string()}


def test_real_numbers_beside_bad_lines_keep_their_digits():
    wanted = pa.schema([("id", pa.float64())])
    table = parse_json(Lines.of(b'{"id": 123456789012.0}\n{"id": 1600000000.125}\njunk'), wanted)
    assert sorted(table.column("id").drop_null().to_pylist()) == ["123456789012.0", "1600000000.125"]
