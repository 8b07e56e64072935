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
        """Rows of any table of ours, less those of forgotten users and items, whom a rejected row names in its JSON."""
        tests = {
            "user_id": lambda: pl.col("user_id").is_in(_set(self.users)),
            "item_index": lambda: pl.col("item_index").is_in(_set(self.indices)),
            "row": lambda: self._are_named(pl.col("row")),
            "aside": lambda: self._are_named(pl.col("aside").str.json_path_match("$.row")),
        }
        found = [test().fill_null(False) for column, test in tests.items() if column in rows.columns]
        return rows.filter(~pl.any_horizontal(found)) if len(self.users) or len(self.items) else rows

    def _are_named(self, row: pl.Expr) -> pl.Expr:
        json = pl.when(row.str.starts_with('{"')).then(row)
        names = (("user_id", self.users), ("item_id", self.items))
        return pl.any_horizontal(json.str.json_path_match(f"$.{column}").is_in(_set(ids)) for column, ids in names)


def _set(ids: pa.Array) -> pl.Expr:
    return pl.lit(pl.Series(ids)).implode()
