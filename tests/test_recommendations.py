"""Readers of what was published: ours, and other people's in one line."""

from datetime import date

import duckdb
import pandas as pd
import pyarrow.dataset
import pytest

from allmrec.nightly.log import roll_back
from allmrec.recommendations import read_recommendations
from allmrec.storage import LocalStorage, S3Config, Storage, open_storage
from tests.nightly.conftest import DAY, Shop
from tests.nightly.test_publish import NEXT_DAY, nightly


def test_read_recommendations_follows_latest_and_dates(storage: Storage, s3: S3Config) -> None:
    shop = Shop()
    with pytest.raises(ValueError, match="nothing is published there yet"):
        read_recommendations(storage.uri, s3=s3)
    first, _ = nightly(storage, shop), nightly(storage, shop, NEXT_DAY)
    latest = read_recommendations(storage.uri, s3=s3)
    assert latest.num_rows == shop.num_users and set(latest.column("run_date").to_pylist()) == {NEXT_DAY}
    for day in (DAY, "2026-03-01"):
        assert read_recommendations(storage.uri, day, s3).column("run_id")[0].as_py() == first["run_id"]
    roll_back(storage, DAY)
    assert read_recommendations(storage.uri, s3=s3).column("run_id")[0].as_py() == first["run_id"]
    with pytest.raises(ValueError, match="nothing is published for 2026-03-09"):
        read_recommendations(storage.uri, "2026-03-09", s3)
    storage.write("run_date=2026-03-01/part-00001.parquet", b"damage")
    with pytest.raises(ValueError, match=r"part-00001\.parquet is damaged"):
        read_recommendations(storage.uri, s3=s3)
    storage.delete("run_date=2026-03-01/part-00001.parquet")
    with pytest.raises(ValueError, match=r"part-00001\.parquet is missing"):
        read_recommendations(storage.uri, s3=s3)


@pytest.mark.s3
def test_pandas_and_duckdb_read_from_s3_in_one_line(
    s3: S3Config, plain_s3_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", str(s3.endpoint_url))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    nightly(open_storage(plain_s3_uri), Shop(), DAY)
    nightly(open_storage(plain_s3_uri), Shop(), NEXT_DAY)
    assert read_recommendations(plain_s3_uri).num_rows == Shop.num_users

    frame = pd.read_parquet(f"{plain_s3_uri}/run_date=2026-03-01/")
    assert len(frame) == Shop.num_users and set(frame["run_date"]) == {DAY}
    assert frame["items"][0][0]["rank"] == 1

    relation = duckdb.from_arrow(pyarrow.dataset.dataset(f"{plain_s3_uri}/run_date=2026-03-01/"))
    best = relation.project("user_id, unnest(items, recursive := true)").filter("rank = 1").fetchdf()
    assert dict(zip(best["user_id"], best["item_id"], strict=True)) == {
        user: items[0]["item_id"] for user, items in zip(frame["user_id"], frame["items"], strict=True)
    }


def test_pandas_and_duckdb_read_from_a_folder_in_one_line(tmp_path) -> None:
    nightly(LocalStorage(tmp_path), Shop(), DAY)
    nightly(LocalStorage(tmp_path), Shop(), NEXT_DAY)
    counts = duckdb.sql(
        f"select run_date, count(*) from '{tmp_path}/run_date=*/part-*.parquet' group by all order by 1"
    )
    assert counts.fetchall() == [(DAY, Shop.num_users), (NEXT_DAY, Shop.num_users)]
    assert set(pd.read_parquet(f"{tmp_path}/run_date=2026-03-02/")["run_date"]) == {date(2026, 3, 2)}
