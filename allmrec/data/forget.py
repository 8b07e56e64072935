"""Users and items that must not appear: privacy requests and recalls.

Their rows are left out where the log is read, quarantined ones too, and counted, never quoted. Knows ids alone.
"""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from allmrec.data.clean import to_arrow, to_polars

FORGOTTEN = "forgotten"  # left out by data.forgotten_users or data.forgotten_items: counted, not rejected


@dataclass(frozen=True)
class Forgotten:
    users: pa.Array  # string, of ids
    items: pa.Array  # int32, of item indices

    @classmethod
    def of(cls, forgotten_users: list[str], forgotten_items: list[int]) -> "Forgotten":
        return cls(pa.array(forgotten_users, pa.string()), pa.array(forgotten_items, pa.int32()))

    def __bool__(self) -> bool:
        return bool(len(self.users) or len(self.items))

    def leave_out(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """CLEANED rows, less those of forgotten users and items; and how many these are, by reason."""
        if not self:
            return rows, {}
        users, items = pl.Series(self.users, dtype=pl.String), pl.Series(self.items, dtype=pl.Int32)
        user = pl.coalesce("user_id", _user_of_row())
        stay = ~(user.is_in(users.implode()) | pl.col("item_index").is_in(items.implode())).fill_null(False)
        kept = rows.filter(stay)
        return kept, {FORGOTTEN: rows.height - kept.height} if kept.height < rows.height else {}

    def without_users(self, rejected: pa.Table) -> pa.Table:
        """Rows of the `rejected` table, less those of forgotten users."""
        users = pl.Series(self.users, dtype=pl.String)
        kept = to_polars(rejected).filter(~_user_of_row().is_in(users.implode()).fill_null(False))
        return to_arrow(kept, rejected.schema)


def _user_of_row() -> pl.Expr:
    """user_id of a row that is JSON; null of others."""
    json = pl.when(pl.col("row").str.starts_with('{"')).then(pl.col("row"))
    return json.str.json_path_match("$.user_id")
