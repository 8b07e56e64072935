"""What Spark writes, by its defaults, is read like what others write."""

import datetime as dt
import os
import shutil
import sys
from decimal import Decimal

import pyarrow as pa
import pytest

from allmrec.data.cells import as_ids, as_series
from allmrec.data.clean import log_columns, microseconds
from allmrec.data.config import DataConfig, SourceConfig
from allmrec.data.sources import open_source
from allmrec.storage import S3Config

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
def spark(tmp_path_factory):
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: pip install 'allmrec[spark]'")
    if not (shutil.which("java") or os.environ.get("JAVA_HOME")):
        pytest.skip("Spark needs Java: apt-get install default-jre-headless")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("spark"))
        patch.delenv("SPARK_HOME", raising=False)
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        settings = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.log.level": "OFF"}
        settings["spark.sql.session.timeZone"] = "Asia/Tokyo"
        session = sql.SparkSession.builder.master("local[1]").config(map=settings).getOrCreate()
        yield session
        session.stop()


@pytest.mark.parametrize("form", ["parquet", "parquet int96", "csv", "json"])
def test_spark(spark, tmp_path, form):
    frame = [
        spark.createDataFrame(
            list(zip(range(3), values, MOMENTS, strict=True)), f"item_id int, user_id {kind}, timestamp timestamp"
        ).coalesce(1)
        for kind, (values, _) in COLUMNS.items()
    ]
    kind = "INT96" if "int96" in form else "TIMESTAMP_MICROS"
    spark.conf.set("spark.sql.parquet.outputTimestampType", kind)
    form = form.split()[0]
    options = {"csv": {"header": "true"}, "json": {"ignoreNullFields": "true"}}.get(form, {})
    for number, (_, ids) in enumerate(COLUMNS.values()):
        folder = tmp_path / str(number)
        frame[number].write.format(form).options(**options).save(str(folder))
        keys = {"csv": {"format": "csv", "escape": "\\"}, "json": {"format": "jsonl"}}.get(form, {})
        config = SourceConfig(paths=[str(folder)], **keys)
        source = open_source("interactions", config, S3Config(), log_columns(DataConfig()))
        table = pa.concat_tables(
            [table for piece in source.pieces for table in source.read(piece)], promote_options="permissive"
        )
        assert table.column("_malformed").null_count == 3
        assert [found or None for found in as_ids(table.column("user_id")).to_pylist()] == ids
        us = [moment and round(moment.timestamp() * 1e6) for moment in MOMENTS]
        assert microseconds(as_series(table.column("timestamp")), "s").to_list() == us
