import hashlib

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.config import SourceConfig
from allmrec.data.prepare.items import clean_items as clean
from allmrec.data.prepare.items import with_counts
from allmrec.data.sources.lines import MALFORMED, NUMBER
from schemas import items, rejected
from tests.data.catalogues import index_items


def table(rows, **types):
    """Rows with the named types, text where nothing is said."""
    names = {name: None for row in rows for name in row} | {MALFORMED: None, NUMBER: None}
    rows, types = [{**row, NUMBER: 7} for row in rows], {**types, NUMBER: pa.int64()}
    return pa.Table.from_pylist(rows, pa.schema([(name, types.get(name, pa.string())) for name in names]))


def clean_items(table, **settings):
    return clean(table, SourceConfig(**settings), {"file": "items.json", "from_byte": 0})


def only(rows, **types):
    return clean_items(table(rows, **types)).to_pylist()[0]


def test_markup_goes_and_text_stays():
    for given_text, text in {
        "Maggiano&#39;s &amp; Caf&eacute; &#x2122;": "Maggiano's & Café ™",
        "<b>Bold</b><br/>new\n\n line <a href='x'>here</a>": "Bold new line here",
        "&lt;i&gt;escaped&lt;/i&gt; markup": "escaped markup",
        "<script>evil('&amp;')</script><!-- no --> seen": "seen",
        "I <3 this, 1 < 2 > 0 & AT&T; 5&": "I <3 this, 1 < 2 > 0 & AT&T; 5&",
        "[HistoryEmb] </s>": "[HistoryEmb]",
        "&nonsense; &#xD800;": "&nonsense; \ufffd",
        "&amp;amp;": "&amp;",
        "<p> </p>": None,
        "": None,
        None: None,
    }.items():
        assert only([{"item_id": "i", "title": given_text}])["title"] == text


def test_lists_of_paragraphs_become_one_text_and_categories_stay_lists():
    texts, nested = pa.list_(pa.string()), pa.list_(pa.list_(pa.string()))
    row = {"item_id": "i", "title": "t", "description": ["One.", None, "", "<p>Two &amp; three.</p>"]}
    assert only([row], description=texts)["description"] == "One. Two & three."
    for value, kind, found in [
        (["Hair &amp; Care", "Shampoo", "Shampoo"], texts, ["Hair & Care", "Shampoo"]),
        ([["Beauty", "Hair"], ["Gifts"]], nested, ["Beauty", "Hair", "Gifts"]),
        ("Beauty", pa.string(), ["Beauty"]),
        ([], texts, []),
        (None, texts, None),
    ]:
        assert only([{"item_id": "i", "title": "t", "categories": value}], categories=kind)["categories"] == found


def test_columns_that_are_missing_or_empty_are_null():
    row = only([{"item_id": 5, "title": None}], item_id=pa.int64(), title=pa.null())
    assert row == {name: None for name in row} | {"item_id": "5", "file": "items.json"}
    assert only([{"item_id": "i", "title": "t", "available": False}], available=pa.bool_())["available"] is False
    assert only([{"item_id": "i", "title": "t", "available": "true"}])["available"] is True


def test_titles_that_are_none_and_categories_in_one_text():
    rows = [
        {"item_id": "a", "title": "var aPageStart = (new Date()).getTime();", "categories": "Comedy|Drama"},
        {"item_id": "b", "title": "getting time", "categories": None},
    ]
    found = clean_items(table(rows), no_title="getTime|function *[(]", list_separator="|").to_pylist()
    assert [(row["title"], row["categories"]) for row in found] == [
        (None, ["Comedy", "Drama"]),
        ("getting time", None),
    ]


ROWS = [
    {"item_id": "b", "title": "Second", "description": "d"},
    {"item_id": "a", "title": "", "description": None},
    {"item_id": "c", "title": None, "description": "without title"},
    {"item_id": "c", "title": "Third, again", "description": None},
    {"item_id": "c", "title": "Third", "description": None},
    {"item_id": "b", "title": "Second", "description": "d"},
    {"item_id": None, "title": "no id", "description": None},
    {"item_id": None, "title": None, "description": None, MALFORMED: "junk"},
]


def test_items_are_indexed_by_id_and_duplicates_rejected():
    prepared, bad = index_items(clean_items(table(ROWS)))
    assert prepared.schema == items.SCHEMA
    assert prepared.select(["item_index", "item_id", "title"]).to_pylist() == [
        {"item_index": 1, "item_id": "a", "title": None},
        {"item_index": 2, "item_id": "b", "title": "Second"},
        {"item_index": 3, "item_id": "c", "title": "Third"},
    ]
    assert prepared.column("text_hash").to_pylist() == [
        hashlib.sha256(text.encode()).hexdigest()
        for text in (
            "Title: untitled item, Description: ",
            "Title: Second, Description: d",
            "Title: Third, Description: ",
        )
    ]
    assert bad.schema == rejected.SCHEMA
    assert set(bad.column("source").to_pylist()) == {"items"}
    assert bad.select(["file", "from_byte", "number"]).to_pylist() == [
        *[{"file": "items.json", "from_byte": None, "number": None}] * 3,
        *[{"file": "items.json", "from_byte": 0, "number": 7}] * 2,
    ]
    duplicate = '{"item_id":"%s","title":%s,"description":%s,"categories":null,"available":null}'
    assert bad.select(["reason", "row"]).to_pylist() == [
        {"reason": rejected.DUPLICATE_ITEM, "row": row}
        for row in (
            duplicate % ("b", '"Second"', '"d"'),
            duplicate % ("c", '"Third, again"', "null"),
            duplicate % ("c", "null", '"without title"'),
        )
    ] + [
        {"reason": rejected.MALFORMED, "row": "junk"},
        {"reason": rejected.NULL_ID, "row": '{"item_id":null,"title":"no id","description":null}'},
    ]


@given(order=st.permutations(ROWS), cut=st.integers(0, len(ROWS)))
def test_the_order_of_rows_and_batches_does_not_matter(order, cut):
    parts = [clean_items(table(ROWS).slice(0, 0))]
    parts += [clean_items(table([*ROWS[:0], *part], title=pa.string())) for part in (order[:cut], order[cut:]) if part]
    expected, expected_bad = index_items(clean_items(table(ROWS)))
    prepared, bad = index_items(pa.concat_tables(parts))
    assert prepared.equals(expected)
    assert bad.equals(expected_bad)


def test_counts_are_set_by_index():
    prepared, _ = index_items(clean_items(table(ROWS)))
    counted = with_counts(prepared, np.array([0, 5, 0, 7]), np.array([0, 6, 2, 9]))
    assert counted.schema == items.SCHEMA
    assert counted.column("popularity").to_pylist() == [5, 0, 7]
    assert counted.column("interactions").to_pylist() == [6, 2, 9]


def test_what_says_neither_yes_nor_no_is_rejected_and_counted():
    rows = [
        {"item_id": str(number), "title": "t", "available": text} for number, text in enumerate(["t", "", "f", "hm"])
    ]
    cleaned = clean_items(table(rows))
    assert cleaned.column("available").to_pylist() == [True, None, False, None]
    prepared, bad = index_items(cleaned)
    assert prepared.column("item_id").to_pylist() == ["0", "1", "2"]
    assert bad.select(["reason", "row"]).to_pylist() == [
        {"reason": rejected.BAD_AVAILABLE, "row": '{"item_id":"3","title":"t","available":"hm"}'}
    ]


def test_numbers_may_be_ids_titles_and_categories():
    row = {"item_id": 7.0, "title": 1984, "categories": [3, None]}
    (found,) = clean_items(
        table([row], item_id=pa.float64(), title=pa.int64(), categories=pa.large_list(pa.int32()))
    ).to_pylist()
    assert (found["item_id"], found["title"], found["categories"]) == ("7", "1984", ["3"])
    empty = [{"item_id": "a", "title": None}, {"item_id": "b", "title": None}]
    assert clean_items(table(empty, title=pa.null())).column("title").to_pylist() == [None, None]
