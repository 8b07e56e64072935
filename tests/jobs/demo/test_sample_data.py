"""`sample-data` writes the input tables, the same bytes for the same arguments, and corrupt rows on request."""

import io
import json

import polars as pl
import pyarrow.parquet as pq
import pytest

from allmrec.demo.sample.corruption import HOSTILE_TITLES
from jobs.demo.sample_data import sample_data
from schemas import check, interactions, items

SIZES = {"users": 200, "items": 100}


def test_clean_tables_keep_their_schemas(tmp_path):
    rows = sample_data(str(tmp_path), **SIZES)
    for domain in ("movies", "games"):
        log = pq.read_table(tmp_path / domain / "interactions.parquet")
        catalogue = pq.read_table(tmp_path / domain / "items.parquet")
        assert check(log, interactions.SCHEMA).num_rows == rows[f"{domain}/interactions.parquet"]
        assert check(catalogue, items.INPUT).num_rows == 100
        assert set(log["item_id"].to_pylist()) <= set(catalogue["item_id"].to_pylist())
        assert log["timestamp"].to_pylist() == sorted(log["timestamp"].to_pylist())
        assert len(log["user_id"].unique()) == 200


def test_same_arguments_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sample_data(str(tmp_path / name), **SIZES, seed=seed, dirty=0.1)
    for file in ("movies/interactions.parquet", "games/items.parquet"):
        one, two, other = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert one == two
        assert one != other


def test_corrupt_rows_come_beside_the_good_rows(tmp_path):
    sample_data(str(tmp_path / "clean"), **SIZES)
    sample_data(str(tmp_path / "dirty"), **SIZES, dirty=0.2)
    clean, dirty = (pl.read_parquet(tmp_path / name / "movies/interactions.parquet") for name in ("clean", "dirty"))
    assert len(dirty) == round(1.2 * len(clean))
    for column in ("user_id", "item_id", "timestamp"):
        assert dirty[column].null_count() > 0
    years = dirty["timestamp"].dt.year()
    assert years.min() < 1900 < 2900 < years.max()
    catalogue = pl.read_parquet(tmp_path / "dirty/movies/items.parquet")
    known = pl.col("item_id").is_in(catalogue["item_id"].drop_nulls().implode())
    assert len(dirty.filter(~known)) > 0
    good = dirty.filter(known, pl.col("user_id").is_not_null(), pl.col("timestamp").dt.year().is_between(2000, 2100))
    assert good.is_duplicated().any()
    assert good.unique(maintain_order=True, keep="first").sort(pl.all()).equals(clean.sort(pl.all()))
    assert set(HOSTILE_TITLES) <= set(catalogue["title"].to_list())
    assert catalogue["item_id"].is_duplicated().any()


def test_json_lines_hold_the_same_rows(tmp_path):
    sample_data(str(tmp_path), **SIZES)
    sample_data(str(tmp_path), **SIZES, format="jsonl")
    for name in ("interactions", "items"):
        lines = (tmp_path / f"movies/{name}.jsonl").read_text().splitlines()
        assert len(lines) == pq.read_metadata(tmp_path / f"movies/{name}.parquet").num_rows
        json.loads(lines[0])
    first = pl.read_ndjson(io.StringIO(lines[0]))
    assert first["title"][0] == pl.read_parquet(tmp_path / "movies/items.parquet")["title"][0]


def test_dirty_json_lines_hold_unreadable_ones(tmp_path):
    sample_data(str(tmp_path), **SIZES, format="jsonl", dirty=0.2)
    lines = (tmp_path / "games/interactions.jsonl").read_text().splitlines()
    assert any(not line.endswith("}") for line in lines)


def test_impossible_sizes_are_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^sample-data: .*too few") as caught:
        sample_data(str(tmp_path), users=10, items=20)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
