"""Users and items that must not appear: privacy requests and recalls.

Their rows are left out where the log is read, quarantined ones too, and counted, never quoted. Knows ids alone.
"""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.data.sources.cells import as_ids

EXCLUDED = "excluded"  # left out by data.excluded_users or data.excluded_items: counted, not rejected


@dataclass(frozen=True)
class Exclusions:
    users: pa.Array  # string, of ids
    items: pa.Array  # string, of ids
    indices: pa.Array  # int32, of the items

    @classmethod
    def of(cls, users: list[str], items: list[str], item_ids: pa.Array) -> "Exclusions":
        """Args: item_ids: string (n,), of the catalogue by item index from 1."""
        known = pc.index_in(pa.array(items, pa.string()), item_ids).drop_null()
        return cls(pa.array(users, pa.string()), pa.array(items, pa.string()), pc.add(known, 1))

    def __bool__(self) -> bool:
        """Whether anyone or anything is excluded."""
        return bool(len(self.users) or len(self.items))

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of any table without those of excluded users and items; a rejected row names them in its JSON."""
        return self.split(rows)[0]

    def split(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows that stay, and the others."""
        tests = {
            "user_id": lambda: pl.col("user_id").is_in(_set(self.users)),
            "item_index": lambda: pl.col("item_index").is_in(_set(self.indices)),
            "row": lambda: self._are_named(pl.col("row")),
        }
        found = [test().fill_null(False) for column, test in tests.items() if column in rows.columns]
        if not self:
            return rows, rows.clear()
        gone = rows.select(pl.any_horizontal(found)).to_series()
        return rows.filter(~gone), rows.filter(gone)

    def named(self, *gone: pl.DataFrame) -> tuple[list[str], list[str]]:
        """The users, and the items that are not in the catalogue, that rows which `split` took out name."""
        json = [rows.select(_json(pl.col("row")).alias("row")) for rows in gone if "row" in rows.columns]
        users = [rows["user_id"] for rows in gone if "user_id" in rows.columns]
        users += [rows.select(_value(pl.col("row"), "user_id")).to_series() for rows in json]
        items = [rows.select(_value(pl.col("row"), "item_id")).to_series() for rows in json]
        return _listed(users, self.users), _listed(items, self.items)

    def _are_named(self, row: pl.Expr) -> pl.Expr:
        names = (("user_id", self.users), ("item_id", self.items))
        return pl.any_horizontal(_value(_json(row), column).is_in(_set(ids)) for column, ids in names)


def _json(row: pl.Expr) -> pl.Expr:
    """The row as JSON, null where it is the text of a malformed line."""
    return pl.when(row.str.starts_with('{"')).then(row)


def _value(json: pl.Expr, column: str) -> pl.Expr:
    """The id that a row names, spelled as ids are: as the log's reader made it of the same value."""
    return json.str.json_path_match(f"$.{column}").map_batches(_as_ids, return_dtype=pl.String)


def _as_ids(values: pl.Series) -> pl.Series:
    return pl.Series(as_ids(values.to_arrow()), dtype=pl.String)


def _listed(found: list[pl.Series], ids: pa.Array) -> list[str]:
    """Those of the ids that some of the series hold."""
    ours = pl.Series(ids, dtype=pl.String)
    return sorted({id for values in found for id in values.filter(values.is_in(ours.implode())).unique().to_list()})


def _set(ids: pa.Array) -> pl.Expr:
    return pl.lit(pl.Series(ids)).implode()
