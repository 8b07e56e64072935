import polars as pl
import pyarrow as pa

from allmrec.data.prepare.exclusions import Exclusions

ITEM_IDS = pa.array(["a", "b", "c"])
ROWS = pl.DataFrame(
    {
        "user_id": ["ann", "bob", "cid", None, None, None, None],
        "item_index": [1, 2, 3, None, None, None, None],
        "row": [
            None,
            None,
            None,
            '{"user_id":"ann"}',
            '{"item_id":"b"}',
            '{"user_id":"dan","item_id":"z"}',
            '{"broken',
        ],
    }
)


def test_rows_of_users_and_items_go_wherever_they_are_named():
    kept = Exclusions.of(["ann"], ["b", "unknown"], ITEM_IDS).without(ROWS)
    assert kept["user_id"].to_list() == ["cid", None, None]
    assert kept["row"].to_list()[1:] == ['{"user_id":"dan","item_id":"z"}', '{"broken']


def test_tables_without_some_of_the_columns():
    assert Exclusions.of(["ann"], [], ITEM_IDS).without(ROWS.select("item_index")).height == 7
    assert Exclusions.of([], ["c"], ITEM_IDS).without(ROWS.select("user_id", "item_index")).height == 6


def test_no_user_is_excluded():
    assert Exclusions.of([], [], ITEM_IDS).without(ROWS).equals(ROWS)


def test_a_rejected_row_may_spell_an_id_as_a_real_number():
    rows = pl.DataFrame(
        {"row": ['{"user_id":7.0}', '{"user_id":"7"}', '{"user_id":70}', '{"item_id":8.0,"user_id":1}']}
    )
    kept, gone = (excluded := Exclusions.of(["7"], ["8"], ITEM_IDS)).split(rows)
    assert kept["row"].to_list() == ['{"user_id":70}'] and excluded.named(gone) == (["7"], ["8"])


def test_the_ids_that_removed_rows_name():
    excluded = Exclusions.of(["ann", "dan", "unknown"], ["b", "z"], ITEM_IDS)
    gone = excluded.split(ROWS)[1]
    assert excluded.named(gone) == (["ann", "dan"], ["b", "z"])
    assert excluded.named(gone.select("user_id"), gone.select("row")) == (["ann", "dan"], ["b", "z"])
