"""The index of the teacher's items is an optional part of a bundle, and workers take it from there."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from allmrec.bundle.build import build_bundle
from allmrec.bundle.description import check_files, read_description
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.cf.approximate import ItemLists
from allmrec.core.artifacts import read_table
from jobs import bundle
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import resolved
from schemas import items
from tests.evaluation.tiny import NUM_ITEMS, write_items
from tests.jobs.in_process import executed
from tests.nightly.nightly_run import make, with_nightly

QUIET = Console(log_json=True)


def test_only_a_bundle_of_more_items_has_it_and_the_others_stay_what_they_were(tiny_workspace) -> None:
    config, storage = tiny_workspace
    settings, used = resolved(config, bundle.SECTIONS), latest_bundle(storage)
    assert used == build_bundle(storage, settings) == build_bundle(storage, settings, NUM_ITEMS)
    indexed = build_bundle(storage, settings, NUM_ITEMS - 1)
    assert indexed != used and indexed == build_bundle(storage, settings, 1), "where the bound is does not matter"
    description, plain = read_description(storage, indexed), read_description(storage, used)
    check_files(storage.at(f"bundles/{indexed}"), description)
    assert {*description["files"]} - {*plain["files"]} == {"index/lists.safetensors", "index/manifest.json"}
    assert description["parts"] == plain["parts"], "no user's digest depends on it"
    assert load_bundle(storage, used).item_lists() is None
    loaded = load_bundle(storage, indexed)
    lists, made = loaded.item_lists(), ItemLists.of(loaded.teacher, torch.arange(NUM_ITEMS + 1) > 0, config.seed)
    assert (lists.list_I == made.list_I).all() and (lists.centre_LE == made.centre_LE).all()


def test_a_run_finds_in_it_and_builds_none(tiny_workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle without gets one by a refresh, as soon as a run is to use it; new items get into it likewise."""
    config = with_nightly(tiny_workspace[0], tmp_path, ranker="teacher", approximate_above=10)
    storage, before = tiny_workspace[1], latest_bundle(tiny_workspace[1])
    without = make(config, storage)
    assert not executed(bundle.REFRESH, with_keys(config, approximate_above=None))
    assert not executed(bundle.REFRESH, with_keys(config, approximate_above=NUM_ITEMS))
    assert executed(bundle.REFRESH, config) and latest_bundle(storage) != before
    assert not executed(bundle.REFRESH, config)
    with monkeypatch.context() as patch:
        patch.setattr(ItemLists, "of", lambda *_: pytest.fail("a worker builds one"))
        made = make(config, storage, date(2026, 11, 21))
    assert made.lists() == without.lists()
    assert made.figures["reused"] == len(made.rows), "another bundle, but the same candidates"

    rows = read_table(storage.at("items")).to_pylist()
    rows[-1]["title"] = "Now it has one"
    write_items(storage, pa.Table.from_pylist(rows, items.SCHEMA))
    indexed = latest_bundle(storage)
    assert executed(bundle.REFRESH, config) and latest_bundle(storage) != indexed
    assert load_bundle(storage, latest_bundle(storage)).item_lists() is not None


def with_keys(config: Config, **changes) -> Config:
    return config.model_copy(update={"nightly": config.nightly.model_copy(update=changes)})
