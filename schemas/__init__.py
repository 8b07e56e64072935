"""The tables that jobs exchange: one module each, with its Arrow schema and a sentence per column.

Ids are strings outside and dense int32 inside; see `items` for the mapping.
"""

import pyarrow as pa


def check(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the schema's columns, cast where that is safe.

    Raises:
        ValueError: a column is missing or cannot be cast; names it.
    """
    for column in schema:
        if column.name not in table.column_names:
            raise ValueError(f"column {column.name!r} is missing; the table has {', '.join(table.column_names)}")
    table = table.select(schema.names)
    for column in schema:
        try:
            table.column(column.name).cast(column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            found = table.schema.field(column.name).type
            raise ValueError(f"column {column.name!r} is {found}; it must be {column.type}") from None
        if not column.nullable and table.column(column.name).null_count:
            raise ValueError(f"column {column.name!r} holds nulls")
    return table.cast(schema)


def read_as(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table that another release may have written, with exactly the schema's columns.

    A column that it lacks is null, so a column that is added to a table must be nullable.

    Raises:
        ValueError: it lacks a column that cannot be null, or one cannot be cast; names it.
    """
    for column in schema:
        if column.nullable and column.name not in table.column_names:
            table = table.append_column(column, pa.nulls(len(table), column.type))
    return check(table, schema)
