"""Runs of consecutive days with tiny models: who gets what, what is reused, what is reported and refused."""

import json
import pickle
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from allmrec.bundle.items import current_items
from allmrec.core.artifacts import commit, read_manifest, read_table, sha256, shard_name, write_shard
from allmrec.core.count_drafts import CountInto, SummedCounts
from allmrec.core.hashing import shard_of
from allmrec.core.shard_tasks import read_reports
from allmrec.core.storage import Storage, open_storage
from allmrec.nightly import run_items, score
from allmrec.nightly.statistics import AuditShards
from allmrec.nightly.users import known_before
from jobs import bundle
from jobs.config import Config
from schemas import candidates, sequences, user_ids
from tests.evaluation.tiny import NUM_ITEMS, NUM_SHARDS, NUM_USERS, tiny_config, write_tiny_workspace
from tests.jobs.in_process import executed
from tests.nightly.nightly_run import FIRST, SECOND, Made, make, with_nightly

STRANGERS = ["stranger-1", "stranger-2"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_llm, tiny_tokenizer) -> tuple[Config, Storage]:
    config = tiny_config(tmp_path_factory.mktemp("runs"))
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    executed(bundle.STEP, config)
    return config, storage


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory) -> tuple[Config, Made]:
    """The first run, and where it was published."""
    config = with_nightly(tiny[0], tmp_path_factory.mktemp("out"))
    return config, make(config, tiny[1])


def partition(storage: Storage, artifact: str, users: list[str]) -> None:
    """As `jobs.user_tables` does."""
    ids = pa.array(sorted(users))
    shard = shard_of(ids, NUM_SHARDS)
    tables = [pa.table({"user_id": ids.filter(pa.array(shard == n))}) for n in range(NUM_SHARDS)]
    files = {
        shard_name(n): write_shard(storage.at(artifact), user_ids.SCHEMA, shard_name(n), t)
        for n, t in enumerate(tables)
    }
    known = len({*users} & {*read_table(storage.at("sequences")).column("user_id").to_pylist()})
    commit(storage.at(artifact), artifact, "test", files, stats={"listed": len(users), "known": known})


def popular_items(storage: Storage, count: int) -> list[str]:
    items = read_table(storage.at("items")).sort_by([("popularity", "descending"), ("item_index", "ascending")])
    return items.column("item_id").to_pylist()[:count]


def test_users_without_a_history_get_popular_items(tiny, tmp_path: Path) -> None:
    config, storage = tiny
    everyone = read_table(storage.at("sequences")).column("user_id").to_pylist()
    partition(storage, "nightly_users", [*everyone[:10], *STRANGERS])
    made = make(with_nightly(config, tmp_path, users="requested.parquet", blocked_items={"ids": ["item-01"]}), storage)
    assert {row["user_id"] for row in made.rows} == {*everyone[:10], *STRANGERS}, "those who are asked for, no others"
    expected = [item for item in popular_items(storage, 6) if item != "item-01"]
    for user in STRANGERS:
        assert made.by_user[user]["source"] == "popular" and made.lists()[user] == expected
    assert made.figures["sources"] == {"llm": 10, "teacher": 0, "popular": 2}


def test_an_unchanged_day_runs_no_llm(tiny, first) -> None:
    config, earlier = first
    second = make(config, tiny[1], SECOND)
    assert second.figures["reused"] == NUM_USERS and second.figures["scored_by_llm"] == 0
    assert "llm" not in vars(second.worker.model), "it is not even loaded"
    assert earlier.figures["scored_by_llm"] == NUM_USERS and second.figures["overlap"] == 1
    assert but_for_the_run(second) == but_for_the_run(earlier) and {row["run_date"] for row in second.rows} == {SECOND}
    third = make(config, tiny[1], date(2026, 11, 22), full=True)
    assert third.figures["scored_by_llm"] == NUM_USERS and but_for_the_run(third) == but_for_the_run(second)


def but_for_the_run(made: Made) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("user_id", "items", "source", "bundle")} for row in made.rows]


def test_two_shards_in_hand_change_nothing(tiny, first, tmp_path: Path) -> None:
    made = make(with_nightly(tiny[0], tmp_path), tiny[1], threads=2)
    assert made.rows == first[1].rows and made.figures["tokens"] == first[1].figures["tokens"]


def test_a_limit_is_a_sample_that_stays(tiny, tmp_path: Path) -> None:
    config = with_nightly(tiny[0], tmp_path, ranker="teacher")
    few, more = (make(config, tiny[1], day, limit=limit) for day, limit in ((FIRST, 7), (SECOND, 20)))
    assert len(few.rows) == 7 and len(more.rows) == 20 and {*few.by_user} < {*more.by_user}


def test_only_what_changed_is_scored_again(tiny, first, tmp_path: Path) -> None:
    """An item is recalled: the rows of users who had it among their candidates are made again, the rest are reused."""
    config, earlier = first
    recalled = earlier.rows[0]["items"][0]["item_id"]
    changed = with_nightly(tiny[0], Path(str(config.nightly.output)), suppressed_items={"ids": [recalled]})
    third = make(changed, tiny[1], date(2026, 11, 23))
    assert 0 < third.figures["scored_by_llm"] < NUM_USERS
    assert third.figures["scored_by_llm"] + third.figures["reused"] == NUM_USERS
    assert recalled not in {item for items in third.lists().values() for item in items}
    assert third.figures["items_left_out"]["suppressed"] == 1
    full = make(with_nightly(tiny[0], tmp_path, suppressed_items={"ids": [recalled]}), tiny[1])
    assert third.lists() == full.lists()
    mine, theirs = (np.array([item["score"] for row in made.rows for item in row["items"]]) for made in (third, full))
    np.testing.assert_allclose(mine, theirs, rtol=1e-4)  # other batches round otherwise


def test_a_row_that_was_cut_is_made_again(tiny, tmp_path: Path) -> None:
    """An item was removed from a published row: its inputs are the same, but it is incomplete."""
    config, storage = with_nightly(tiny[0], tmp_path), tiny[1]
    earlier, store = make(config, storage), open_storage(str(tmp_path))
    success = f"run_date={FIRST}/_SUCCESS"
    manifest = json.loads(store.read(success))
    file = manifest["files"][0]
    table = pq.read_table(tmp_path / file["key"])
    rows = table.to_pylist()
    rows[0]["items"] = rows[0]["items"][:-1]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / file["key"])
    file["sha256"] = sha256(store.read(file["key"]))
    store.write(success, json.dumps(manifest).encode())
    again = make(config, storage, SECOND)
    assert again.figures["scored_by_llm"] == 1 and again.lists() == earlier.lists()
    store.delete(file["key"])
    third = make(config, storage, date(2026, 11, 22))
    assert third.figures["reused"] == NUM_USERS, "from the second run, which is whole"


def test_suppressed_users_and_categories(tiny, tmp_path: Path) -> None:
    config, storage = tiny
    everyone = read_table(storage.at("sequences")).column("user_id").to_pylist()
    make(with_nightly(config, tmp_path), storage)
    partition(storage, "suppressed_users", everyone[:3])
    made = make(with_nightly(config, tmp_path, suppressed_users="gone.parquet"), storage, SECOND)
    assert not {*everyone[:3]} & {*made.by_user} and len(made.rows) == NUM_USERS - 3
    assert made.figures["suppressed_users"] == 3 and made.figures["reused"] == NUM_USERS - 3
    with pytest.raises(ValueError, match=r"no item is left to recommend \(category 40\)"):
        make(with_nightly(config, tmp_path / "none", allowed_categories=["Toys"]), storage)


def test_a_date_in_the_past_knows_the_past_alone(tiny, tiny_llm, tiny_tokenizer, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    executed(bundle.STEP, config)
    manifest, files = read_manifest(storage.at("sequences")), {}
    later = datetime(2026, 11, 21, tzinfo=UTC)  # the first moment after FIRST
    before = later - timedelta(microseconds=1)
    cut: dict[str, list[int]] = {}
    for shard in range(NUM_SHARDS):
        rows = read_table(storage.at("sequences"), [shard]).to_pylist()
        for number, row in enumerate(rows):
            then = len(row["item_index"]) if number % 4 == 0 else number % 4 - 1
            row["timestamp"] = [later if place >= then else before for place in range(len(row["item_index"]))]
            cut[row["user_id"]] = row["item_index"][:then]
        name = shard_name(shard)
        files[name] = write_shard(
            storage.at("sequences"), sequences.SCHEMA, name, pa.Table.from_pylist(rows, sequences.SCHEMA)
        )
    commit(storage.at("sequences"), "sequences", "test", files, stats=manifest.stats)
    made = make(with_nightly(config, tmp_path / "out", ranker="teacher"), storage, FIRST)
    assert {*made.by_user} == {user for user, items in cut.items() if items}
    assert len(make(with_nightly(config, tmp_path / "now", ranker="teacher"), storage, SECOND).rows) == NUM_USERS
    for shard in range(NUM_SHARDS):
        users = made.job.users.read(shard).users
        for user, items in zip(users.user_ids.to_pylist(), np.split(users.items, users.offsets[1:-1]), strict=True):
            assert items.tolist() == cut[user]


def test_gates_stop_a_run_before_it_is_published(tiny, tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"min_coverage": 1.0, "max_fallback_share": 0.0}
    config = with_nightly(tiny[0], tmp_path, ranker="teacher", quality_gates=bounds)
    with pytest.raises(ValueError, match=r"coverage is 0\.\d+ and nightly.quality_gates.min_coverage is 1\. .*=null"):
        make(config, tiny[1])
    assert not (tmp_path / "latest.json").exists()
    report = json.loads((tmp_path / f"_reports/run_date={FIRST}/report.json").read_text())
    assert [gate["name"] for gate in report["quality_gates"] if not gate["holds"]] == ["min_coverage"]
    off = with_nightly(tiny[0], tmp_path, ranker="teacher", quality_gates={"min_coverage": None})
    assert make(off, tiny[1]).job.run.run_id == report["run_id"], "quality gates are no part of a run's identity"


def test_other_counts_are_no_other_bundle(tmp_path: Path, tiny_llm, tiny_tokenizer) -> None:
    config = tiny_config(tmp_path)
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    executed(bundle.STEP, config)
    config = with_nightly(config, tmp_path / "out")
    first = make(config, storage)
    items = storage.at("items")
    (name,), table = read_manifest(items).files, read_table(items)
    column = table.schema.get_field_index("popularity")
    counted = pc.if_else(pc.greater(table["popularity"], 0), pc.add(table["popularity"], 1), 0).cast(pa.int64())
    commit(
        items,
        "items",
        "test",
        {name: write_shard(items, table.schema, name, table.set_column(column, "popularity", counted))},
    )
    assert not executed(bundle.STEP, config), "there is nothing to build"
    second = make(config, storage, SECOND)
    assert second.figures["reused"] == NUM_USERS and but_for_the_run(second) == but_for_the_run(first)


def test_lists_are_counted_and_must_be_known(tiny, tmp_path: Path) -> None:
    """However a recall list spells an item, it is recommended to no user; what is listed and known is in the report."""
    config, storage = tiny
    (tmp_path / "recall.txt").write_bytes(b'\xef\xbb\xbfitem-00 \r\n"item-01"\r\nITEM-02\r\n')
    partition(storage, "suppressed_users", ["user-00", "user-01", "gone"])
    lists = {"suppressed_items": str(tmp_path / "recall.txt"), "suppressed_users": "gone.parquet"}
    made = make(with_nightly(config, tmp_path / "out", **lists, ranker="teacher"), storage)
    assert {"item-00", "item-01"}.isdisjoint(item for items in made.lists().values() for item in items)
    assert made.report["lists"] == [
        {"list": "nightly.suppressed_items", "of": "items", "listed": 3, "known": 2, "applied": 2},
        {"list": "nightly.suppressed_users", "of": "users", "listed": 3, "known": 2, "applied": 2},
    ]
    page = open_storage(str(tmp_path / "out")).read(f"_reports/run_date={FIRST}/report.html").decode()
    assert "nightly.suppressed_items" in page
    for unknown in ({"ids": ["ITEM-00"]}, {"ids": ["item-00", "a", "b"]}):
        with pytest.raises(ValueError, match=r"nightly\.blocked_items: of [13] items listed, [01] are known"):
            make(with_nightly(config, tmp_path / "no", blocked_items=unknown), storage)
    assert not (tmp_path / "no").exists(), "before the date has a run"


def test_what_was_seen_may_be_recommended_again(tiny, first, tmp_path: Path) -> None:
    config, storage = tiny
    seen = {row["user_id"]: row["item_index"] for row in read_table(storage.at("sequences")).to_pylist()}
    ids = read_table(storage.at("items")).sort_by("item_index").column("item_id").to_pylist()
    given = {user: [ids[item - 1] for item in items][:5] for user, items in seen.items()}
    shards = shard_of(pa.array([*given]), NUM_SHARDS)
    files = {}
    for shard in range(NUM_SHARDS):
        mine = {user: items for (user, items), at in zip(given.items(), shards, strict=True) if at == shard}
        table = pa.table({"user_id": [*mine], "item_ids": [*mine.values()]}, schema=candidates.SCHEMA)
        files[shard_name(shard)] = write_shard(storage.at("candidates"), candidates.SCHEMA, shard_name(shard), table)
    counts = {"listed": 1, "known": 1, "items_listed": 1, "items_known": 1}
    commit(storage.at("candidates"), "candidates", "test", files, stats=counts)
    changes = {"candidates": "given.parquet", "num_candidates": 5, "ranker": "teacher"}
    again = make(with_nightly(config, tmp_path / "again", recommend_seen=True, **changes), storage)
    assert all({*again.lists()[user]} >= {*items} for user, items in given.items())
    assert again.figures["dropped"] == {}
    never = make(with_nightly(config, tmp_path / "never", **changes), storage)
    assert all({*never.lists()[user]}.isdisjoint(items) for user, items in given.items())
    assert again.job.run.identity != never.job.run.identity
    whole = make(with_nightly(config, tmp_path / "whole", recommend_seen=True, ranker="teacher"), storage)
    assert any({*whole.lists()[user]} & {*items} for user, items in given.items()), "the teacher retrieves them, too"


def test_a_date_ends_at_midnight_of_its_time_zone() -> None:
    """An event at 20:00 UTC is of the next day in Tokyo."""
    stamp = datetime(2026, 11, 20, 20, tzinfo=UTC)
    row = {"user_id": "u", "item_index": [1], "timestamp": [stamp], "train_length": 1}
    table = pa.Table.from_pylist([row], sequences.SCHEMA)
    assert len(known_before(table, FIRST)) == len(known_before(table, SECOND, "Asia/Tokyo")) == 1
    assert len(known_before(table, FIRST, "Asia/Tokyo")) == 0


def test_a_process_reads_the_catalogue_once_for_all_shards_that_it_audits(first, monkeypatch) -> None:
    job, read = first[1].job, []
    monkeypatch.setattr(score, "_items", {})
    monkeypatch.setattr(run_items, "current_items", lambda *of: read.append(of) or current_items(*of))
    for shard in range(NUM_SHARDS):
        AuditShards(job).process(shard)
    assert len(read) == 1


def test_nothing_by_item_is_in_what_the_driver_sends_and_gets(first) -> None:
    job = first[1].job
    assert len(job.items().filter.verdict_I) == NUM_ITEMS + 1
    assert b"numpy" not in pickle.dumps(job), "nor when it has read the items"
    for shard in range(NUM_SHARDS):
        (report,) = read_reports(CountInto(AuditShards(job), job.item_counts).tables(shard))
        assert not report.item_counts and max(map(len, report.sums.values())) < NUM_ITEMS
    counts = SummedCounts(job.item_counts, 0, NUM_SHARDS).read()["items"]
    listed = Counter(item["item_id"] for row in first[1].rows for item in row["items"])
    assert counts.tolist() == [listed[item] for item in job.items().catalogue.item_ids.to_pylist()]


def test_every_worker_goes_by_the_lists_that_the_run_began_with(tiny, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "recall.txt").write_text("item-00\n")
    lists = {"suppressed_items": str(tmp_path / "recall.txt")}
    job = make(with_nightly(tiny[0], tmp_path / "out", **lists, ranker="teacher"), tiny[1]).job
    (tmp_path / "recall.txt").write_text("item-01\n")
    monkeypatch.setattr(score, "_items", {})
    items = score.ScoreShards(job).items
    assert items.catalogue.item_ids.take(pa.array(np.flatnonzero(items.filter.verdict_I == 4))).to_pylist() == [
        "item-00"
    ]
    job.run.storage.delete(f"{job.run.work}/verdicts")  # as before the first worker
    monkeypatch.setattr(score, "_items", {})
    with pytest.raises(ValueError, match=f"when run {job.run.run_id} of {FIRST} began: .* run again"):
        score.ScoreShards(job)
