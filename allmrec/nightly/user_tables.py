"""Tables by user (candidates, lists of users), partitioned by the users' shards: a shard reads only its own rows.

Pieces of the input on one side, whole shards on the other. Candidates come as a list of items a user, or as a row a
pair of user and item with its rank or score; ids are of any type that the log's may be.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import shard_name, write_shard
from allmrec.core.hashing import shard_of
from allmrec.core.shard_tasks import Task
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.known import Known
from allmrec.data.sequences import offsets_of
from allmrec.data.sources.cells import ID_TYPES, accepts, as_ids, is_id, is_list, is_number, is_text, plain_type
from allmrec.data.sources.lists import ids_of, spellings, trimmed
from allmrec.data.sources.readers import Piece
from allmrec.data.sources.source import Column, Source
from schemas import candidates, user_ids

COUNTS = ("listed", "known", "items_listed", "items_known")  # users, and of candidates the items
REPORT = pa.schema(
    [("name", pa.string()), ("sha256", pa.string()), *[(name, pa.int64()) for name in ("size", "rows", *COUNTS)]]
)


def item_of(kind: pa.DataType) -> str | None:
    """The field with the item of a struct such as Spark's ALS makes: `item_id`, or the only one that can be an id."""
    ids = [field.name for field in kind if pa.types.is_integer(field.type) or is_text(field.type)]
    return "item_id" if "item_id" in ids else ids[0] if len(ids) == 1 else None


def _is_list_of_ids(kind: pa.DataType) -> bool:
    if not is_list(kind):
        return pa.types.is_null(kind)
    entry = plain_type(kind).value_type
    return item_of(entry) is not None if pa.types.is_struct(entry) else is_id(entry)


_orders = accepts(is_number, is_text)


CANDIDATES = {
    "user_id": Column(True, is_id, ID_TYPES),
    "item_ids": Column(False, _is_list_of_ids, "a list of ids, or of structs with a field item_id"),
    "item_id": Column(False, is_id, ID_TYPES),
    "rank": Column(False, _orders, "a number"),
    "score": Column(False, _orders, "a number"),
}


class Rows:
    """A kind of table: what it is while it is partitioned, and how a shard's rows of it become a file."""

    schema: pa.Schema

    def read(self, source: Source, piece: Piece) -> Iterator[pa.Table]:
        """Rows with user_id; those without a user or an item are left out."""
        raise NotImplementedError

    def whole(self, rows: pa.Table) -> pa.Table:
        """All rows of a shard, in any order → the file's."""
        raise NotImplementedError


class UserRows(Rows):
    """Lists of users, in every spelling; each once."""

    schema = user_ids.SCHEMA

    def read(self, source: Source, piece: Piece) -> Iterator[pa.Table]:
        for ids in ids_of(source, piece, "user_id"):
            yield pa.table([pc.unique(spellings(ids))], schema=self.schema)

    def whole(self, rows: pa.Table) -> pa.Table:
        return rows.group_by("user_id").aggregate([]).sort_by("user_id").cast(self.schema)


class WideRows(Rows):
    """A list a user, ordered by user; of several lists the longest comes first."""

    schema = candidates.SCHEMA

    def read(self, source: Source, piece: Piece) -> Iterator[pa.Table]:
        for table in source.read(piece):
            table = table.select(self.schema.names).drop_null()
            lists = table.column("item_ids").combine_chunks()
            entries = lists.flatten()
            if pa.types.is_struct(entries.type):
                entries = pc.struct_field(entries, item_of(entries.type))
            lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
            items = _lists(offsets_of(lengths), as_ids(entries).combine_chunks())
            rows = pa.table([as_ids(table.column("user_id")), items], names=self.schema.names)
            yield rows.drop_null().cast(self.schema)

    def whole(self, rows: pa.Table) -> pa.Table:
        rows = rows.append_column("length", pc.list_value_length(rows.column("item_ids")))
        rows = rows.append_column("text", pc.binary_join(rows.column("item_ids"), ","))
        order = [("user_id", "ascending"), ("length", "descending"), ("text", "ascending")]
        return rows.sort_by(order).select(self.schema.names)


@dataclass(frozen=True)
class LongRows(Rows):
    """A row a pair, gathered into lists by rank, lowest first, or by score, highest first; ties by the item's id."""

    by: tuple[str, ...]  # of "rank" and "score": what the table may have

    schema = pa.schema(
        [
            pa.field("user_id", pa.string(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("order", pa.float64()),  # ascending; without one an item comes last
        ]
    )

    def read(self, source: Source, piece: Piece) -> Iterator[pa.Table]:
        for table in source.read(piece):
            ids = [as_ids(table.column(name)) for name in ("user_id", "item_id")]
            numbers = {name: _numbers(table.column(name), name, source.name) for name in self.by}
            orders = [pc.negate(found) if name == "score" else found for name, found in numbers.items()]
            rows = pa.table([*ids, pc.coalesce(*orders)], names=self.schema.names)
            yield rows.filter(pc.and_(ids[0].is_valid(), ids[1].is_valid())).cast(self.schema)

    def whole(self, rows: pa.Table) -> pa.Table:
        rows = rows.sort_by([(name, "ascending") for name in ("user_id", "order", "item_id")])
        users = rows.column("user_id").combine_chunks().dictionary_encode()
        lengths = np.bincount(users.indices.to_numpy(), minlength=len(users.dictionary))
        lists = _lists(offsets_of(lengths), rows.column("item_id").combine_chunks())
        return pa.table([users.dictionary, lists], schema=candidates.SCHEMA)


def rows_of(source: Source) -> Rows:
    """How candidates are written. Raises ValueError where they are neither a list a user nor a row a pair."""
    names = [field.name for field in source.fields if not pa.types.is_null(field.type)]
    if "item_ids" in names:
        return WideRows()
    by = tuple(name for name in ("rank", "score") if name in names)
    if "item_id" in names and by:
        return LongRows(by)
    raise ValueError(
        f"{source.name}: neither a column item_ids (a list a user, best first) nor item_id with rank or score (a row a "
        f"pair) in {source.files[0].uri}; name yours in nightly.candidates.columns, such as item_ids: recommendations"
    )


def _numbers(column: pa.ChunkedArray, name: str, table: str) -> pa.ChunkedArray:
    """float64; NaN as null. Raises ValueError for text that is no number."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    try:
        numbers = (pc.utf8_trim_whitespace(column) if is_text(column.type) else column).cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{table}: column {name!r} is not all numbers: {str(error).splitlines()[0]}") from None
    return pc.if_else(pc.is_nan(numbers), None, numbers)


class PartitionRows(Task):
    """A piece's rows, each with its shard."""

    def __init__(self, source: Source, rows: Rows, num_shards: int):
        self.source, self.rows, self.num_shards = source, rows, num_shards

    def tables(self, number: int) -> Iterator[pa.Table]:
        for table in self.rows.read(self.source, self.source.pieces[number]):
            yield table.append_column("shard", pa.array(shard_of(table.column("user_id"), self.num_shards)))


class WriteRows:
    """Whole shards, shuffled → their files, and how many of their users and items the workspace knows."""

    def __init__(self, target: Storage, rows: Rows, schema: pa.Schema, workspace: Workspace):
        self.target, self.rows, self.schema, self.known = target, rows, schema, Known(workspace)

    def __call__(self, table: pa.Table) -> pa.Table:
        reports = []
        for shard in pc.unique(table.column("shard")).to_pylist():
            mine = table.filter(pc.equal(table.column("shard"), shard)).select(self.rows.schema.names)
            rows, name = self.rows.whole(mine), shard_name(shard)
            rows, counts = self._counted(shard, rows)
            reports.append({"name": name, **write_shard(self.target, self.schema, name, rows), **counts})
        return pa.Table.from_pylist(reports, schema=REPORT)

    def _counted(self, shard: int, rows: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        """An id with spaces around it counts only for a user who is known by it; without them it is listed, too."""
        ids = rows.column("user_id").combine_chunks()
        users = pc.unique(ids)
        known = users.filter(pa.array(self.known.users_of(shard, users)))
        is_plain = pc.equal(ids, trimmed(ids))
        if "item_ids" in self.schema.names:
            items = pc.list_flatten(rows.column("item_ids")).drop_null().combine_chunks()
            counts = {"items_listed": len(items), "items_known": int(self.known.items(items).sum())}
            return rows, {"listed": len(users), "known": len(known), **counts}
        counts = {"listed": pc.sum(is_plain).as_py() or 0, "known": len(pc.unique(trimmed(known)))}
        return rows.filter(pc.or_(is_plain, pc.is_in(ids, known))), counts


def _lists(offsets: np.ndarray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
