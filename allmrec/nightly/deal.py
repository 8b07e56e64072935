"""Tables by user (candidates, lists of users), dealt to the users' shards, so that a shard reads only its own rows.

Plain callables for batches; pieces of the input on one side, whole shards on the other.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from allmrec.artifacts import shard_name, write_shard
from allmrec.data.clean import is_id
from allmrec.data.sources import Column, Source
from allmrec.hashing import shard_of
from allmrec.storage import Storage

USER_IDS = {"user_id": Column(True, is_id, "text or an integer")}
CANDIDATES = {
    "user_id": Column(True, lambda type: pa.types.is_string(type) or pa.types.is_large_string(type), "string"),
    "item_ids": Column(True, lambda type: pa.types.is_list(type) or pa.types.is_large_list(type), "list<string>"),
}


class DealRows:
    """Piece numbers → the pieces' rows and their shards. Rows without a user or a list are left out."""

    def __init__(self, source: Source, schema: pa.Schema, num_shards: int):
        self.source, self.schema, self.num_shards = source, schema, num_shards

    def __call__(self, batch: dict[str, Any]) -> Iterator[pa.Table]:
        for number in batch["id"].tolist():
            for table in self.source.read(self.source.pieces[number]):
                table = table.select(self.schema.names).drop_null().cast(self.schema)
                yield table.append_column("shard", pa.array(shard_of(table.column("user_id"), self.num_shards)))


class WriteRows:
    """Whole shards, shuffled → their files. Rows are ordered by user; of several the longest list comes first."""

    def __init__(self, storage: Storage, schema: pa.Schema):
        self.storage, self.schema = storage, schema

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for shard in pc.unique(table.column("shard")).to_pylist():
            mine = table.filter(pc.equal(table.column("shard"), shard)).select(self.schema.names)
            order = [("user_id", "ascending")]
            if "item_ids" in self.schema.names:
                mine = mine.append_column("length", pc.list_value_length(mine.column("item_ids")))
                mine = mine.append_column("text", pc.binary_join(mine.column("item_ids"), ","))
                order += [("length", "descending"), ("text", "ascending")]
            name = shard_name(shard)
            rows.append({"name": name, **write_shard(self.storage, self.schema, name, mine.sort_by(order))})
        return pa.Table.from_pylist(rows, schema=REPORT)


REPORT = pa.schema(
    [("name", pa.string()), ("sha256", pa.string()), ("size", pa.int64()), ("rows", pa.int64())],
)
