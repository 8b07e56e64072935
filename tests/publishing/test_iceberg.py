"""The published files as an Iceberg table on S3, in a SQL catalogue: what other readers see is what is published."""

import logging
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyiceberg.catalog
import pytest
from pydantic import ValidationError
from pyiceberg.catalog import load_catalog
from pyiceberg.table import Table
from pyiceberg.utils.config import Config

from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.publishing import iceberg, maintenance, run, suppression
from allmrec.publishing.iceberg import CURRENT, IcebergConfig, check, mirror
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.log import roll_back
from allmrec.publishing.reader import read_recommendations
from schemas import read_as
from schemas.recommendations import SCHEMA
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_replace import replaced
from tests.publishing.test_run import NEXT_DAY, nightly

pytestmark = pytest.mark.s3
CONFIG = IcebergConfig(catalog="lake", table="shop.recommendations")


@pytest.fixture
def store(s3: S3Config, plain_s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """Where two days are published; PyIceberg's settings name a catalogue in a SQLite file."""
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__TYPE", "sql")
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())  # which a process reads once
    storage = open_storage(plain_s3_uri, s3)
    for day in (DAY, NEXT_DAY):
        nightly(storage, Shop(), day, lease_s=0.2)
    return storage


def table(s3: S3Config, tmp_path: Path) -> Table:
    """As another program opens it."""
    uri = f"sqlite:///{tmp_path}/catalog.db"
    properties = {"s3.endpoint": str(s3.endpoint_url), "s3.region": "us-east-1", "s3.force-virtual-addressing": "false"}
    return load_catalog("lake", type="sql", uri=uri, **properties).load_table(CONFIG.table)


def rows(table: pa.Table) -> list[dict]:
    return sorted(table.to_pylist(), key=lambda row: (row["run_date"], row["user_id"]))


def test_the_table_lists_what_is_published_through_all_that_becomes_of_it(
    store: Storage, s3: S3Config, tmp_path: Path
) -> None:
    def check(days: list[date], snapshots: int) -> None:
        mirror(CONFIG, store, s3)
        found = table(s3, tmp_path)
        read = pa.concat_tables(read_recommendations(store.uri, day, s3) for day in days)
        assert rows(found.scan().to_arrow()) == rows(read)
        assert len(found.snapshots()) == snapshots

    check([DAY, NEXT_DAY], 1)
    first = table(s3, tmp_path).metadata_location
    check([DAY, NEXT_DAY], 1)
    assert table(s3, tmp_path).metadata_location == first, "nothing to commit"
    files = [entry.key for entry in store.list() if entry.key.endswith(".parquet") and entry.key[:6] != "_runs/"]
    assert len(files) == 2 * Shop.num_shards, "no file is copied"

    by_duckdb = table(s3, tmp_path).scan(f"run_date = '{DAY}'").to_duckdb("recommendations")
    query = "select user_id, len(items) from recommendations order by all"
    expected = rows(read_recommendations(store.uri, DAY, s3))
    assert by_duckdb.sql(query).fetchall() == sorted((row["user_id"], len(row["items"])) for row in expected)

    replaced(store, Shop())
    with hold_lease(store, NEXT_DAY, 0.2) as lease:
        gone = pa.array(["u3"]), pa.array(["item 2"])
        suppression.suppress(store, NEXT_DAY, *gone, lease, lambda: mirror(CONFIG, store, s3))
    check([DAY, NEXT_DAY], 1)
    later = table(s3, tmp_path).scan("run_date > '2026-03-01'").to_arrow()
    assert "u3" not in later.column("user_id").to_pylist() and later.num_rows == Shop.num_users - 1
    with hold_lease(store, DAY, 0.2) as lease:
        maintenance.expire(store, DAY, lease, lambda: mirror(CONFIG, store, s3))
    check([NEXT_DAY], 1)
    nightly(store, Shop(), date(2026, 3, 3), lease_s=0.2)
    check([NEXT_DAY, date(2026, 3, 3)], 2)
    roll_back(store, NEXT_DAY)
    mirror(CONFIG, store, s3)
    assert table(s3, tmp_path).properties[CURRENT] == str(NEXT_DAY)


def test_a_column_is_added_to_a_table_that_exists(
    store: Storage, s3: S3Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror(CONFIG, store, s3)
    later, shop = SCHEMA.append(pa.field("note", pa.string())), Shop()
    for module in (iceberg, run):
        monkeypatch.setattr(module, "SCHEMA", later)
    rows_of = shop.table
    monkeypatch.setattr(shop, "table", lambda *arguments: read_as(rows_of(*arguments), later))
    nightly(store, shop, date(2026, 3, 3), lease_s=0.2)
    mirror(CONFIG, store, s3)
    found = table(s3, tmp_path).scan().to_arrow()
    assert found.num_rows == 3 * Shop.num_users and found.column("note").null_count == found.num_rows


def test_metadata_says_nothing_of_users(store: Storage, s3: S3Config) -> None:
    mirror(CONFIG, store, s3)
    for entry in store.list("_iceberg/"):
        assert b"u11" not in store.read(entry.key) and b"item 2" not in store.read(entry.key)
    assert any(entry.key.endswith(".avro") for entry in store.list("_iceberg/"))


def test_what_is_wrong_with_the_catalogue_is_said_in_one_line(
    store: Storage, s3: S3Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = CONFIG.model_copy(update={"catalog": "nowhere"})
    for call in (lambda: mirror(nowhere, store, s3), lambda: check(nowhere, s3)):
        with pytest.raises(ValueError, match=r"nightly\.iceberg\.catalog 'nowhere': "):
            call()
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", "sqlite:////nowhere/catalog.db")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())
    with caplog.at_level(logging.WARNING, "allmrec"):  # other tests' libraries set the root's
        check(CONFIG, s3)
    assert "cannot be reached" in caplog.text, "which is no reason to publish nothing"
    with pytest.raises(ValidationError, match="should match pattern"):
        IcebergConfig(catalog="lake", table="recommendations")
