"""Dealing candidates: a user's rows land in the user's shard, whatever the pieces."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.data.config import SourceConfig
from allmrec.data.sources import open_source
from allmrec.hashing import shard_of
from allmrec.nightly.deal import CANDIDATES, DealRows, WriteRows
from allmrec.storage import S3Config, open_storage
from schemas.candidates import SCHEMA


def test_rows_are_dealt_by_user_and_ordered(tmp_path: Path) -> None:
    users = [f"user-{n}" for n in range(50)] + [None, "user-7"]
    lists = [[f"item-{n}"] for n in range(50)] + [["item-0"], ["item-1", "item-2"]]
    pq.write_table(pa.table({"user": users, "item_ids": lists}), tmp_path / "in.parquet")
    config = SourceConfig(paths=[str(tmp_path / "in.parquet")], columns={"user_id": "user"})
    source = open_source("candidates", config, S3Config(), CANDIDATES, "nightly.candidates")
    dealt = pa.concat_tables(table for table in DealRows(source, SCHEMA, 3)({"id": pa.array([0]).to_numpy()}))
    assert dealt.num_rows == 51, "the row without a user is left out"

    storage = open_storage(str(tmp_path / "out"))
    report = WriteRows(storage, SCHEMA)(dealt.take(pa.array(range(50, -1, -1)))).to_pylist()
    assert sum(row["rows"] for row in report) == 51
    for row in report:
        table = pq.read_table(tmp_path / "out" / row["name"])
        number = int(row["name"][5:10])
        assert set(shard_of(table.column("user_id"), 3).tolist()) == {number}
        assert table.column("user_id").to_pylist() == sorted(table.column("user_id").to_pylist())
        if "user-7" in table.column("user_id").to_pylist():
            first = table.column("user_id").to_pylist().index("user-7")
            assert table.column("item_ids")[first].as_py() == ["item-1", "item-2"], "the longer list comes first"
