"""Recommendations as a data source of Spark 4, read by its executors with this package's own reader: no jar for S3.

spark.dataSource.register(allmrec.publishing.spark.Recommendations)
spark.read.format("allmrec").load("s3://bucket/recommendations")
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import StructType

from allmrec.core.storage import open_storage
from allmrec.publishing.reader import read_rows, run_manifest
from schemas.recommendations import SCHEMA


class Recommendations(DataSource):
    """The current run, or that of the option `run_date`; the environment says how to reach the store.

    Which files they are is settled when a query is planned; each is compared with its sha256 as it is read. Raises
    ValueError as `read_recommendations`.
    """

    @classmethod
    def name(cls) -> str:
        return "allmrec"

    def schema(self) -> StructType:
        return from_arrow_schema(SCHEMA)

    def reader(self, schema: StructType) -> "Reader":
        return Reader(self.options["path"], self.options.get("run_date"))


@dataclass
class Reader(DataSourceReader):
    uri: str
    run_date: str | None

    def partitions(self) -> list[InputPartition]:
        """One for each file."""
        return [InputPartition(file) for file in run_manifest(open_storage(self.uri), self.run_date)["files"]]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        yield from read_rows(open_storage(self.uri), partition.value).to_batches()
