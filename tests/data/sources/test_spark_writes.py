"""What Spark writes, by its defaults, is read like what others write."""

import datetime as dt
from decimal import Decimal

import pyarrow as pa
import pytest

from allmrec.core.storage import S3Config
from allmrec.data.config import DataConfig, SourceConfig
from allmrec.data.prepare.clean import log_columns, microseconds
from allmrec.data.sources.cells import as_ids, as_series
from allmrec.data.sources.lines import MALFORMED
from allmrec.data.sources.source import open_source

MOMENTS = [dt.datetime(2024, 3, 1, 10, 0, 0, 500_000, dt.UTC), None, dt.datetime(2024, 3, 2, tzinfo=dt.UTC)]
COLUMNS = {  # type → values as Spark takes them, and the ids
    "string": (["007", 'say "hi", \\o', None], ["007", 'say "hi", \\o', None]),
    "int": ([1, None, 3], ["1", None, "3"]),
    "bigint": ([1, None, 2**60], ["1", None, str(2**60)]),
    "double": ([1.0, None, 3.0], ["1", None, "3"]),
    "decimal(38,0)": ([Decimal(1), None, Decimal(10**30)], ["1", None, str(10**30)]),
    "decimal(10,2)": ([Decimal(1), None, Decimal("2.00")], ["1", None, "2"]),
}


@pytest.fixture(scope="module")
def frame(spark):
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    values = zip(*(values for values, _ in COLUMNS.values()), strict=True)
    rows = [(number, moment, *row) for number, (moment, row) in enumerate(zip(MOMENTS, values, strict=True))]
    kinds = ", ".join(f"user{number} {kind}" for number, kind in enumerate(COLUMNS))
    return spark.createDataFrame(rows, f"item_id int, timestamp timestamp, {kinds}").coalesce(1)


@pytest.mark.parametrize("form", ["parquet", "parquet int96", "csv", "json"])
def test_spark(spark, frame, tmp_path, form):
    spark.conf.set("spark.sql.parquet.outputTimestampType", "INT96" if "int96" in form else "TIMESTAMP_MICROS")
    form, folder = form.split()[0], tmp_path / "log"
    frame.write.format(form).options(**{"header": "true"} if form == "csv" else {}).save(str(folder))
    keys = {"csv": {"format": "csv", "escape": "\\"}, "json": {"format": "jsonl"}}.get(form, {})
    for number, (_, ids) in enumerate(COLUMNS.values()):
        config = SourceConfig(paths=[str(folder)], columns={"user_id": f"user{number}"}, **keys)
        source = open_source("interactions", config, S3Config(), log_columns(DataConfig()))
        table = pa.concat_tables([table for piece in source.pieces for table in source.read(piece)])
        assert table.column(MALFORMED).null_count == 3
        assert [found or None for found in as_ids(table.column("user_id")).to_pylist()] == ids
        us = [moment and round(moment.timestamp() * 1e6) for moment in MOMENTS]
        assert microseconds(as_series(table.column("timestamp")), "s").to_list() == us
