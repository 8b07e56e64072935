"""A catalogue of several files, in shards of three items, is what one process makes of all its rows at once."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.artifacts import find_manifest, read_table, writing
from allmrec.core.mapped_columns import MappedColumns
from allmrec.core.storage import S3Config
from allmrec.data.catalogue import ItemCounts, StoredCounts
from allmrec.data.config import SourceConfig
from allmrec.data.prepare import item_shards
from allmrec.data.prepare.incremental import HistoriesPlan
from allmrec.data.prepare.items import ITEMS, with_counts
from allmrec.data.sources.source import open_source
from jobs.config import Config
from jobs.items import clean_catalogue, merge_catalogue, write_catalogue
from jobs.runtime.console import Console
from jobs.runtime.step import Context
from schemas import rejected
from tests.data.catalogues import cleaned_rows, index_items
from tests.jobs.in_process import jobs_in_process

NAMES = [["d", "b", "a", "k"], ["c", "b", "i", "g", None], ["a", "h", "e", "j", "f"]]


def item(item_id, file):
    title = f"{item_id} of {file}"
    return {"item_id": item_id, "title": title, "description": None, "categories": ["x"], "available": None}


@pytest.fixture
def shop(tmp_path):
    for file, names in enumerate(NAMES):
        rows = [item(name, file) for name in names]
        rows[0]["title"] = None if file == 2 else rows[0]["title"]
        types = {"description": pa.string(), "available": pa.bool_(), "categories": pa.list_(pa.string())}
        schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / f"{file}.parquet")
    return open_source("items", SourceConfig(paths=[str(tmp_path / "*.parquet")]), S3Config(), ITEMS)


def prepared(root, shop, known=(), excluded=()):
    """The `items` and the rejected rows, from shards."""
    config = Config(name="shop", root=str(root))
    workspace, context = config.workspace, Context(config, config.workspace, Console(log_json=True), "prepare")
    drafts, plan = workspace.item_drafts, HistoriesPlan(workspace.histories, shop, config.data, [], [])
    with jobs_in_process(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(HistoriesPlan, "known_items", lambda plan: pa.array(known, pa.string()))
        catalogue = clean_catalogue(context, shop, plan, drafts)
        with writing(workspace.rejected, "rejected", "step") as out:
            out.add(merge_catalogue(context, catalogue, drafts, excluded))
        table = pa.table(
            {name: values for name, values in vars(counts(catalogue.num_items)).items() if name != "users"}
        )
        stored = StoredCounts(MappedColumns.write(drafts, "counts.arrow", table), users=1)
        with writing(workspace.items, "items", "step") as out:
            out.add(write_catalogue(context, drafts, catalogue.num_items, stored))
    return read_table(workspace.items), read_table(workspace.rejected), catalogue


def counts(num_items):
    numbers = pa.array(range(num_items + 1)).to_numpy()
    return ItemCounts(numbers, 2 * numbers, users=1)


def test_shards_are_those_of_one_table(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(item_shards, "ITEMS_PER_SHARD", 3)
    items, bad, catalogue = prepared(tmp_path / "runs", shop, excluded=["g"])
    expected, expected_bad = index_items(cleaned_rows(shop), excluded=["g"])
    assert items.equals(with_counts(expected, counts(11).popularity, counts(11).interactions))
    order = [(name, "ascending") for name in rejected.SCHEMA.names]
    assert bad.sort_by(order).equals(expected_bad.sort_by(order))
    assert (len(expected_bad), catalogue.numbered.gone) == (3, 0)
    assert catalogue.rejected == {"duplicate_item": 2, "null_id": 1}
    workspace = Config(name="shop", root=str(tmp_path / "runs")).workspace
    assert [entry["rows"] for entry in find_manifest(workspace.items).files.values()] == [3, 3, 3, 2]


def test_what_the_catalogue_has_lost_keeps_number_and_words(tmp_path, shop, monkeypatch):
    monkeypatch.setattr(item_shards, "ITEMS_PER_SHARD", 3)
    before, _, _ = prepared(tmp_path / "runs", shop)
    known = before.column("item_id").to_pylist()
    pq.write_table(pq.read_table(shop.pieces[0].uri).slice(3), shop.pieces[0].uri)  # without d
    smaller = open_source("items", shop.config, S3Config(), ITEMS)
    items, _, catalogue = prepared(tmp_path / "runs", smaller, known)
    assert catalogue.numbered.gone == 1 and catalogue.listed == 10 and items.column("item_id").to_pylist() == known
    expected, _ = index_items(cleaned_rows(smaller), known, before=before)
    assert items.equals(with_counts(expected, counts(11).popularity, counts(11).interactions))
    (lost,) = [row for row in items.to_pylist() if row["item_id"] == "d"]
    assert lost["title"] == "d of 0" and lost["available"] is False


def test_nothing_by_item_comes_to_the_driver(tmp_path, shop):
    _, _, catalogue = prepared(tmp_path / "runs", shop)
    told = pickle.dumps((catalogue.numbered, catalogue.log_items))
    assert len(told) < 2500 and not any(f"{name!r}".encode() in told for name in NAMES[1] if name)
