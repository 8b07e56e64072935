import importlib
import pkgutil

import pyarrow as pa
import pytest

import schemas
from schemas import check, items, sequences

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


def test_prepared_items_hold_the_input_columns_first():
    assert items.SCHEMA.names[: len(items.INPUT)] == items.INPUT.names


def test_every_table_is_described():
    for module in pkgutil.iter_modules(schemas.__path__):
        assert importlib.import_module(f"schemas.{module.name}").__doc__
