"""Users and items that must not appear: privacy requests and recalls.

Their rows are left out where the log is read, quarantined ones too, and counted, never quoted. Knows ids alone.
"""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

FORGOTTEN = "forgotten"  # left out by data.forgotten_users or data.forgotten_items: counted, not rejected


@dataclass(frozen=True)
class Forgotten:
    users: pa.Array  # string, of ids
    items: pa.Array  # string, of ids
    indices: pa.Array  # int32, of the items

    @classmethod
    def of(cls, users: list[str], items: list[str], item_ids: pa.Array) -> "Forgotten":
        """Args: item_ids: string (n,), of the catalogue by item index from 1."""
        known = pc.index_in(pa.array(items, pa.string()), item_ids).drop_null()
        return cls(pa.array(users, pa.string()), pa.array(items, pa.string()), pc.add(known, 1))

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of any table of ours, less those of forgotten users and items; `row` may be JSON that names them."""
        tests = {
            "user_id": lambda: pl.col("user_id").is_in(_set(self.users)),
            "item_index": lambda: pl.col("item_index").is_in(_set(self.indices)),
            "row": lambda: _named("user_id").is_in(_set(self.users)) | _named("item_id").is_in(_set(self.items)),
        }
        found = [test().fill_null(False) for column, test in tests.items() if column in rows.columns]
        return rows.filter(~pl.any_horizontal(found)) if len(self.users) or len(self.items) else rows


def _set(ids: pa.Array) -> pl.Expr:
    return pl.lit(pl.Series(ids)).implode()


def _named(column: str) -> pl.Expr:
    """What a row that is JSON has in a column; null in others."""
    return pl.when(pl.col("row").str.starts_with('{"')).then(pl.col("row")).str.json_path_match(f"$.{column}")
