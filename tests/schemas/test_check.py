import importlib
import pkgutil

import pyarrow as pa
import pytest

import schemas
from schemas import check, items, read_as, sequences

ROW = {"user_id": "u", "item_index": [1, 2], "timestamp": [0, 1], "train_length": 1}


def test_columns_are_cast_ordered_and_selected():
    table = pa.table({"extra": [1], **{name: [value] for name, value in reversed(ROW.items())}})
    assert check(table, sequences.SCHEMA).schema == sequences.SCHEMA


def test_what_does_not_fit_is_named():
    for change, message in [
        ({"user_id": None}, "'user_id' is missing"),
        ({"item_index": ["a"]}, "'item_index' is string; it must be list"),
        ({"user_id": pa.array([None], pa.string())}, "'user_id' holds nulls"),
    ]:
        columns = {name: [value] for name, value in ROW.items()} | change
        table = pa.table({name: values for name, values in columns.items() if values is not None})
        with pytest.raises(ValueError, match=message):
            check(table, sequences.SCHEMA)


def test_a_table_of_another_release_has_nulls_where_it_lacks_a_column():
    parts = pa.struct([pa.field("id", pa.string(), nullable=False), pa.field("added", pa.int32())])
    schema = pa.schema([pa.field("user_id", pa.string(), nullable=False), ("added", pa.int32()), ("parts", parts)])
    old = pa.table({"user_id": ["u"], "dropped": [1], "parts": [{"id": "i"}]})
    read = read_as(old, schema)
    assert read.schema == schema
    assert read.to_pylist() == [{"user_id": "u", "added": None, "parts": {"id": "i", "added": None}}]
    with pytest.raises(ValueError, match="'user_id' is missing"):
        read_as(old.drop(["user_id"]), schema)


def test_prepared_items_hold_the_input_columns_first():
    assert items.SCHEMA.names[: len(items.INPUT)] == items.INPUT.names


def test_every_table_is_described():
    for module in pkgutil.iter_modules(schemas.__path__):
        assert importlib.import_module(f"schemas.{module.name}").__doc__
