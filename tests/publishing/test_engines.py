"""The lines of docs/publishing.md, verbatim: before a run is published they see nothing of it, then all."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper

import allmrec
from allmrec.core.storage import LocalStorage, S3Config, Storage, open_storage
from allmrec.publishing.reader import read_recommendations
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import NEXT_DAY, Killed, ObservedStorage, nightly

LINES = (Path(__file__).parents[2] / "docs" / "publishing.md").read_text()
Reader = Callable[[str, str], pd.DataFrame]  # (root, name of the manifest) → rows


def documented(words: str) -> str:
    """The code block of the documentation that has these words in it."""
    (block,) = (block for block in re.findall(r"```(?:sql|python)\n(.*?)```", LINES, re.S) if words in block)
    return block


def with_python(words: str, root: str, manifest: str, **names: Any) -> Any:
    code = re.sub(r"s3a?://bucket/recommendations", root, documented(words)).replace("latest.json", manifest)
    exec(code.replace("run_date=2026-11-21", manifest.partition("/")[0]), names)
    return names["frame"]


def with_duckdb(connection: duckdb.DuckDBPyConnection, root: str, manifest: str) -> pd.DataFrame:
    code = documented("read_parquet").replace("s3://bucket/recommendations", root).replace("latest.json", manifest)
    return connection.sql(code).df()


def unpublished(storage: Storage) -> None:
    """The files of DAY are all there; the run was killed before it wrote `_SUCCESS`."""

    def around(key: str, is_write: bool, operation: Callable[[], Any]) -> Any:
        if is_write and key == f"run_date={DAY}/_SUCCESS":
            raise Killed
        return operation()

    with pytest.raises(Killed):
        nightly(ObservedStorage(storage, around), Shop(), DAY, lease_s=0.2)
    assert len(list(storage.list(f"run_date={DAY}/part-"))) == Shop.num_shards


def rows_of(frame: pd.DataFrame) -> list[tuple]:
    """(user, item, rank, score), in order; lists or one row an item."""
    if "items" in frame:
        frame = frame.explode("items").reset_index(drop=True)
        frame = frame.join(pd.DataFrame(frame["items"].tolist()))
    return sorted(frame[["user_id", "item_id", "rank", "score"]].itertuples(index=False, name=None))


def test_our_reader_is_at_the_top() -> None:
    assert allmrec.read_recommendations is read_recommendations


@pytest.mark.s3
@pytest.mark.usefixtures("s3_environment")
def test_duckdb_pandas_and_ours_agree_on_s3(s3: S3Config, plain_s3_uri: str) -> None:
    storage = open_storage(plain_s3_uri, s3)

    class S3(ArrowFSWrapper):
        """What the extension httpfs does, which pip does not bring."""

        protocol = "s3"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix("s3://")

    connection = duckdb.connect()
    connection.register_filesystem(S3(storage.arrow()[0]))
    readers: list[Reader] = [
        partial(with_duckdb, connection),
        partial(with_python, "pyarrow.fs"),
        lambda root, manifest: read_recommendations(root, manifest[9:19] if "/" in manifest else None).to_pandas(),
    ]
    latest, date = "latest.json", f"run_date={DAY}/_SUCCESS"
    unpublished(storage)
    for read in readers:
        for manifest in (latest, date):
            with pytest.raises(
                (ValueError, OSError, duckdb.Error), match=r"(?i)not found|no files|does not exist|nothing is"
            ):
                read(plain_s3_uri, manifest)
    nightly(storage, Shop(), NEXT_DAY)
    for read in readers:
        assert set(read(plain_s3_uri, latest)["user_id"]) == {f"u{n}" for n in range(Shop.num_users)}, (
            "one day, and not two"
        )
    nightly(storage, Shop(), DAY, lease_s=0.2)
    for manifest in (latest, date):
        ours, *others = (rows_of(read(plain_s3_uri, manifest)) for read in reversed(readers))
        assert len(ours) > 3 * Shop.num_users and all(rows == ours for rows in others)


def test_spark_reads_the_same_by_its_own_parquet_reader(spark: Any, tmp_path: Path) -> None:
    """From a folder: pip does not bring the jar that it needs for S3."""
    storage = LocalStorage(tmp_path / "out")
    nightly(storage, Shop(), NEXT_DAY)
    unpublished(storage)
    by_date = partial(with_python, "spark.read.text", storage.uri, f"run_date={DAY}/_SUCCESS", spark=spark)
    with pytest.raises(Exception, match="PATH_NOT_FOUND"):
        by_date()
    nightly(storage, Shop(), DAY, lease_s=0.2)
    ours = rows_of(read_recommendations(storage.uri).to_pandas())
    latest = with_python("spark.read.json", storage.uri, "latest.json", spark=spark)
    for frame in (latest, by_date()):
        assert rows_of(exploded(frame)) == ours


@pytest.mark.s3
def test_spark_reads_the_same_from_s3_by_our_source(spark: Any, s3: S3Config, s3_uri: str) -> None:
    storage = open_storage(s3_uri, s3)

    def rows(run_date: str | None = None) -> list[tuple]:
        frame = with_python("allmrec.publishing.spark", s3_uri, "latest.json", spark=spark)
        if run_date:
            frame = spark.read.format("allmrec").option("run_date", run_date).load(s3_uri)
            assert {str(row.run_date) for row in frame.select("run_date").collect()} == {run_date}
        return rows_of(exploded(frame))

    unpublished(storage)
    for run_date in (None, str(DAY)):
        with pytest.raises(Exception, match="nothing is published"):
            rows(run_date)
    nightly(storage, Shop(), NEXT_DAY)
    next_day = rows_of(read_recommendations(s3_uri).to_pandas())
    nightly(storage, Shop(), DAY, lease_s=0.2)
    ours = rows_of(read_recommendations(s3_uri).to_pandas())
    assert rows() == rows(str(DAY)) == ours and rows(str(NEXT_DAY)) == next_day


def exploded(frame: Any) -> pd.DataFrame:
    return frame.selectExpr("user_id", "inline(items)").toArrow().to_pandas()
