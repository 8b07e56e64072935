"""Users and items that must not appear: privacy requests and recalls.

Their rows are left out where the log is read, quarantined ones too, and counted, never quoted. Knows ids alone.
"""

from dataclasses import dataclass

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.data.cells import as_ids

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
        return self.split(rows)[0]

    def split(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows that stay, and the others."""
        tests = {
            "user_id": lambda: pl.col("user_id").is_in(_set(self.users)),
            "item_index": lambda: pl.col("item_index").is_in(_set(self.indices)),
            "row": lambda: self._are_named(pl.col("row")),
            "aside": lambda: self._are_named(_row_of(pl.col("aside"))),
        }
        found = [test().fill_null(False) for column, test in tests.items() if column in rows.columns]
        if not len(self.users) and not len(self.items):
            return rows, rows.clear()
        gone = rows.select(pl.any_horizontal(found)).to_series()
        return rows.filter(~gone), rows.filter(gone)

    def named(self, gone: pl.DataFrame) -> tuple[list[str], list[str]]:
        """The users, and the items that are not of the catalogue, whom rows that `split` took out name."""
        json = [_json(pl.col("row"))] if "row" in gone.columns else []
        json += [_json(_row_of(pl.col("aside")))] if "aside" in gone.columns else []
        users = [gone["user_id"]] if "user_id" in gone.columns else []
        users += [gone.select(_value(text, "user_id")).to_series() for text in json]
        items = [gone.select(_value(text, "item_id")).to_series() for text in json]
        return _listed(users, self.users), _listed(items, self.items)

    def _are_named(self, row: pl.Expr) -> pl.Expr:
        names = (("user_id", self.users), ("item_id", self.items))
        return pl.any_horizontal(_value(_json(row), column).is_in(_set(ids)) for column, ids in names)


def _row_of(aside: pl.Expr) -> pl.Expr:
    """The text of the row that a CLEANED row set aside."""
    return aside.str.json_path_match("$.row")


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
