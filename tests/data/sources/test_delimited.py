import csv
import io

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.data.config import SourceConfig
from allmrec.data.sources.delimited import header, parse
from allmrec.data.sources.lines import MALFORMED, NUMBER, Lines

NAMES = ["user", "item", "stars"]


def read(text, wanted=NAMES, **settings):
    config = SourceConfig(format="csv", **settings)
    quote = config.quote.encode() if config.quoted_newlines else None
    lines = Lines.of(text, quote=quote, escape=config.escape.encode() if config.escape else None)
    table = parse(lines, NAMES, wanted, config).sort_by(NUMBER)
    assert table.schema.names == [*wanted, MALFORMED, NUMBER]
    return table.to_pylist()


def values(rows):
    return [tuple(row[name] for name in NAMES) if row[MALFORMED] is None else row[MALFORMED] for row in rows]


def test_values_are_text_in_the_order_that_is_asked_for():
    rows = read(b'007,1e3,\n"a ""b"", c",\xc3\xa9, 5 ', ["stars", "user"])
    assert rows == [
        {"stars": "", "user": "007", MALFORMED: None, NUMBER: 1},
        {"stars": " 5 ", "user": 'a "b", c', MALFORMED: None, NUMBER: 2},
    ]


def test_headers():
    for text, keys in {
        b'a, b ,"c,d"': {},
        b"a\tb\tc,d": {"delimiter": "\t"},
        b"a::b::c,d": {"delimiter": "::"},
        b'a;b;"c,d"\n1': {"delimiter": ";"},
    }.items():
        assert header(Lines.of(text), SourceConfig(format="csv", **keys)) == ["a", "b", "c,d"]
    assert header(Lines.of(b'a,"b'), SourceConfig(format="csv", quote=None)) == ["a", '"b']
    with pytest.raises(pa.ArrowInvalid, match="utf-8"):
        header(Lines.of(b"\xff"), SourceConfig(format="csv"))


@pytest.mark.parametrize(
    "line",
    [b"a,b", b"a,b,c,d", b'a,"b,c', b'a,b,"c', b"a,\xff,c", b"x", b" ", b'"', b"a\rb,c", b'"a,b,c""'],
)
def test_a_bad_line_comes_out_as_its_text_and_damages_no_other(line):
    lines = [b"%d,x,y" % number for number in range(200)]
    rows = read(b"\n".join([*lines[:100], line, *lines[100:]]))
    expected = [(str(number), "x", "y") for number in range(200)]
    assert values(rows) == [*expected[:100], line.decode(errors="replace"), *expected[100:]]
    assert [row[NUMBER] for row in rows] == list(range(1, 202))
    assert values(read(b"\n".join([*lines, line]))) == [*expected, line.decode(errors="replace")]
    assert values(read(line)) == [line.decode(errors="replace")]


def test_delimiters_of_several_characters():
    text = b"1::a:b::5\n2::a::b::5\n3::\x1f\x1e::5\n4:::b::5"
    rows = values(read(text, delimiter="::", quote=None))
    assert rows == [("1", "a:b", "5"), "2::a::b::5", ("3", "\x1f\x1e", "5"), ("4", ":b", "5")]
    everything = bytes(set(range(1, 32)) - set(b"\t\r\n"))  # no byte is free in this line
    assert values(read(b"1::a::5\n2::" + everything + b"::5", delimiter="::"))[0] == ("1", "a", "5")
    assert values(read("1¦a¦5".encode(), delimiter="¦")) == [("1", "a", "5")]
    assert values(read(b'1::"a::b"::5', delimiter="::")) == [("1", "a::b", "5")]
    assert header(Lines.of(b'a::"b::c"'), SourceConfig(format="csv", delimiter="::")) == ["a", "b::c"]
    assert values(read(b"1\x01a\x015", delimiter="\x01")) == [("1", "a", "5")]


def test_encodings_and_nulls():
    text = "1,Amélie – €,5".encode("cp1252")
    assert values(read(text)) == [text.decode(errors="replace")]
    assert values(read(text, encoding="cp1252")) == [("1", "Amélie – €", "5")]
    assert values(read(text, encoding="latin-1")) == [("1", text.decode("latin-1").split(",")[1], "5")]
    assert values(read(b"1,\x81,5\n2,b,5", encoding="cp1252")) == ["1,�,5", ("2", "b", "5")]
    assert values(read(b'NULL,"\\N",', nulls=["NULL", "\\N"])) == [(None, None, "")]


def test_without_quotes_they_are_characters():
    assert values(read(b'1,"a,5', quote=None)) == [("1", '"a', "5")]
    assert values(read(b"1,'a,b',5", quote="'")) == [("1", "a,b", "5")]
    assert values(read(b'1,5" pipe,5')) == [("1", '5" pipe', "5")]


def test_newlines_in_values_are_read_where_the_config_says_so():
    text = b'1,"two\nlines",5\n2,"a",5\n3,"open,5'
    assert values(read(text)) == ['1,"two', 'lines",5', ("2", "a", "5"), '3,"open,5']
    rows = read(text, quoted_newlines=True)
    assert values(rows) == [("1", "two\nlines", "5"), ("2", "a", "5"), '3,"open,5']
    assert [row[NUMBER] for row in rows] == [1, 3, 4]
    # Two quotes that are none of the format's: the lines between them are read one by one.
    text = b'1,5" pipe,5\n2,b,5\n3,6" pipe,5'
    assert values(read(text, quoted_newlines=True)) == values(read(text))


fields = st.lists(
    st.text(st.characters(exclude_characters="\r\n\x00", codec="utf-8"), max_size=6), min_size=3, max_size=3
)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(fields, max_size=20), broken=st.sets(st.integers(0, 19)), delimiter=st.sampled_from(",;\t|"))
def test_what_the_standard_library_writes_is_read_back(rows, broken, delimiter):
    target = io.StringIO()
    csv.writer(target, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    lines = target.getvalue().split("\n")[:-1]
    lines = [line[:-1] if number in broken else line for number, line in enumerate(lines)]  # its last quote is gone
    expected = [lines[number] if number in broken else tuple(row) for number, row in enumerate(rows)]
    assert values(read("\n".join(lines).encode(), delimiter=delimiter)) == expected


@settings(deadline=None, max_examples=50)
@given(
    lines=st.lists(st.text('a,"\r é', max_size=9).map(lambda line: f"{line}a"), max_size=12), seed=st.integers(0, 99)
)
def test_a_line_fares_the_same_in_any_company(lines, seed):
    order = np.random.default_rng(seed).permutation(len(lines))
    together = values(read("\n".join(lines).encode()))
    mixed = values(read("\n".join(lines[number] for number in order).encode()))
    alone = [row for line in lines for row in values(read(line.encode()))]
    assert together == alone
    assert mixed == [alone[number] for number in order]


def test_an_escape_makes_a_quote_a_delimiter_and_itself_a_character():
    text = b'1,"The \\"Best\\" Lamp","a, b"\n2\\,3,C:\\\\mugs,C:\\new\n4,"ends in \\\\",5" pipe'
    assert values(read(text, escape="\\")) == [
        ("1", 'The "Best" Lamp', "a, b"),
        ("2,3", "C:\\mugs", "C:\\new"),
        ("4", "ends in \\", '5" pipe'),
    ]
    assert values(read(b'\\N,"x\\"y",NULL', escape="\\", nulls=["NULL", "\\N"])) == [(None, 'x"y', None)]
    tabs = read(b"1\ta\\\tb\t\\N", escape="\\", delimiter="\t", quote=None, nulls=["\\N"])
    assert values(tabs) == [("1", "a\tb", None)]
    records = read(b'1,"a \\"\nb",2\n3,"open\\",4', escape="\\", quoted_newlines=True)
    assert values(records) == [("1", 'a "\nb', "2"), '3,"open\\",4']
    assert values(read(b"1::a\\::b::c\\", escape="\\", delimiter="::")) == [("1", "a::b", "c\\")]
    assert header(Lines.of(b'a,"b\\"c",d'), SourceConfig(format="csv", escape="\\")) == ["a", 'b"c', "d"]
    for wrong in "é", '"', ",":
        with pytest.raises(ValueError, match="escape must be an ASCII character"):
            SourceConfig(format="csv", escape=wrong)


@pytest.mark.parametrize("line", [b'1,The,"say "hi" now"', b'1,"The \\"Best\\" Lamp",x', b'"a" ,b,c', b'1,"5"",x"6",b'])
def test_quotes_that_end_before_their_value_are_not_guessed_at(line):
    good = b'2,5" pipe,6" pipe\n3,"a ""b""","c"'
    rows = [("2", '5" pipe', '6" pipe'), ("3", 'a "b"', "c")]
    assert values(read(good + b"\n" + line)) == [*rows, line.decode()]


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(fields, max_size=20), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_is_written_with_an_escape_is_read_back(rows, quoting):
    target = io.StringIO()
    csv.writer(target, lineterminator="\n", quoting=quoting, escapechar="\\", doublequote=False).writerows(rows)
    text = target.getvalue().removesuffix("\n")
    lines = [line for line in text.split("\n") if line]
    assert len(lines) == len(rows)
    assert values(read(text.encode(), escape="\\")) == [tuple(row) for row in rows]
