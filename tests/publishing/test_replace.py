"""A date is made again from other inputs: readers see the old run until the new one is published, then that alone."""

import itertools
from collections.abc import Callable
from datetime import date
from threading import Event, Thread
from typing import Any

import pytest

from allmrec.core.commit_log import entries_after, load_json
from allmrec.core.storage import LocalStorage, S3Config, Storage
from allmrec.nightly.results import publish, published_run
from allmrec.nightly.reuse import PreviousRun
from allmrec.publishing import maintenance
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.log import LATEST, roll_back
from allmrec.publishing.reader import read_recommendations, verify_run
from allmrec.publishing.run import Run
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import IDENTITY, NEXT_DAY, Killed, ObservedStorage, assert_whole, audit, mortal, nightly

OTHER = {"bundle": "v2"}


def replaced(storage: Storage, shop: Shop, identity: dict[str, Any] = OTHER, run_date: date = DAY) -> dict[str, Any]:
    """What `nightly --replace` does, without its models."""
    with hold_lease(storage, run_date, 0.2) as lease:
        run = Run.open(storage, run_date, identity, lease)
    if entry := run.published():
        return entry
    with hold_lease(storage, run_date, 0.2) as lease:
        for shard in sorted(set(range(shop.num_shards)) - run.finished_shards()):
            run.commit_shard(shard, shop.table(shard, run.run_id, run_date))
        return publish(run, audit(run, shop), lease, lambda: None)


def parts(storage: Storage, run_date: date = DAY) -> list[str]:
    return [entry.key for entry in storage.list(f"run_date={run_date}/part-")]


def test_a_published_date_is_replaced_and_both_runs_stay_in_the_log(storage: Storage, shop: Shop, s3: S3Config) -> None:
    first = nightly(storage, shop, lease_s=0.2)
    second = replaced(storage, shop)
    assert [entry["run_id"] for entry in entries_after(storage, 0)] == [first["run_id"], second["run_id"]]
    assert_whole(storage, load_json(storage, LATEST), shop)
    assert load_json(storage, f"run_date={DAY}/_SUCCESS")["run_id"] == second["run_id"] != first["run_id"]
    assert read_recommendations(storage.uri, DAY, s3).column("run_id").unique().to_pylist() == [second["run_id"]]
    assert parts(storage) == [file["key"] for file in second["files"]], "who globs sees one run"
    before = [entry.key for entry in storage.list()]
    assert replaced(storage, shop) == second, "the same run is made once"
    assert Run.open(storage, DAY, OTHER).published() == second, "without the flag as well"
    with pytest.raises(ValueError, match=r"bundle was 'v2' and is 'v1'.*`allmrec nightly --replace`"):
        Run.open(storage, DAY, IDENTITY)
    assert [entry.key for entry in storage.list() if "/lease/" not in entry.key] == [
        key for key in before if "/lease/" not in key
    ]
    third = replaced(storage, shop, IDENTITY)
    assert third["run_id"] == first["run_id"] and third["n"] == 3 and verify_run(storage, DAY)["files"] == 2


def test_a_begun_date_is_replaced_whatever_its_workers_still_write(storage: Storage, shop: Shop) -> None:
    begun = Run.open(storage, DAY, IDENTITY)
    begun.commit_shard(0, shop.table(0, begun.run_id))
    with hold_lease(storage, DAY, 0.2) as lease:
        run = Run.open(storage, DAY, OTHER, lease)
    assert run.finished_shards() == set()
    begun.commit_shard(1, shop.table(1, begun.run_id))  # by a worker that does not know
    assert run.finished_shards() == set()
    entry = replaced(storage, shop)
    assert entry["n"] == 1 and entry["run_id"] == run.run_id
    assert_whole(storage, entry, shop)
    with pytest.raises(ValueError, match="bundle was 'v2' and is 'v1'"):
        begun.publish(shop.num_shards, {})


def test_a_replacement_killed_at_any_write_resumes_and_readers_see_one_run(tmp_path, shop: Shop) -> None:
    for die_at in itertools.count(1):
        storage = LocalStorage(tmp_path / str(die_at))
        first = nightly(storage, shop, lease_s=0.2)
        try:
            replaced(mortal(storage, die_at), shop)
            break
        except Killed:
            for key in (LATEST, f"run_date={DAY}/_SUCCESS"):
                assert_whole(storage, load_json(storage, key), shop)
        second = replaced(storage, shop)
        assert second["n"] == 2 and second["run_id"] != first["run_id"]
        assert_whole(storage, load_json(storage, f"run_date={DAY}/_SUCCESS"), shop)
        assert maintenance.expired(storage, 1) == []
        with hold_lease(storage, DAY, 0.2) as lease:
            maintenance.tidy(storage, DAY, lease)  # as `expire` does
        assert parts(storage) == [file["key"] for file in second["files"]], f"killed at write {die_at}"
    assert die_at > 20, "every write was tried"


def test_readers_never_see_a_mixture(storage: Storage, shop: Shop) -> None:
    nightly(storage, shop, lease_s=0.2)
    over, broken = Event(), list[Exception]()

    def poll() -> None:
        while not over.is_set():
            manifest = load_json(storage, f"run_date={DAY}/_SUCCESS")
            try:
                assert_whole(storage, manifest, shop)
            except FileNotFoundError:
                if load_json(storage, f"run_date={DAY}/_SUCCESS") == manifest:
                    raise
            except Exception as error:
                broken.append(error)

    reader = Thread(target=poll)
    reader.start()
    for identity in (OTHER, IDENTITY):
        replaced(storage, shop, identity)
    over.set()
    reader.join()
    assert not broken


def test_a_replacement_that_is_abandoned_is_discarded_and_the_old_run_stays(storage: Storage, shop: Shop) -> None:
    first = nightly(storage, shop, lease_s=0.2)
    with hold_lease(storage, DAY, 0.2) as lease:
        run = Run.open(storage, DAY, OTHER, lease)
    run.commit_shard(0, shop.table(0, run.run_id))
    storage.copy(next(one.key for one in storage.list(f"{run.work}/attempts/")), f"run_date={DAY}/part-00000-x.parquet")
    with hold_lease(storage, DAY, 0.2) as lease:
        maintenance.discard(storage, DAY, lease)
    assert not maintenance.unfinished(storage, DAY) and parts(storage) == [file["key"] for file in first["files"]]
    assert_whole(storage, load_json(storage, LATEST), shop)
    with hold_lease(storage, DAY, 0.2) as lease, pytest.raises(ValueError, match="is published, as run"):
        maintenance.discard(storage, DAY, lease)


def test_the_next_run_reuses_none_that_was_rolled_back(storage: Storage, shop: Shop) -> None:
    days = [DAY, NEXT_DAY, date(2026, 3, 3)]

    def previous(day: date) -> str | None:
        found = PreviousRun.before(storage, day, shop.num_shards)
        return found and found.manifest["run_date"]

    for day in days[:2]:
        nightly(storage, shop, day)
    assert previous(days[2]) == str(NEXT_DAY)
    roll_back(storage, DAY)
    assert previous(days[2]) == str(DAY), "not the night that people went back from"
    nightly(storage, shop, days[2])
    assert previous(date(2026, 3, 4)) == str(days[2]) and previous(days[2]) == str(DAY)
    replaced(storage, shop, OTHER, NEXT_DAY)
    assert previous(days[2]) == str(NEXT_DAY), "it was made again"
    roll_back(storage, DAY)
    roll_back(storage, days[2])
    assert previous(date(2026, 3, 4)) == str(days[2]), "back and forth"


def test_a_backfill_killed_before_the_later_run_is_current_again_is_mended(storage: Storage, shop: Shop) -> None:
    later = nightly(storage, shop, NEXT_DAY, lease_s=0.2)

    def around(key: str, is_write: bool, operation: Callable[[], Any]) -> Any:
        if is_write and key == "_log/00000003.json":
            raise Killed
        return operation()

    with pytest.raises(Killed):
        replaced(ObservedStorage(storage, around), shop)
    assert load_json(storage, LATEST)["run_date"] == str(DAY)
    for _ in range(2):
        assert published_run(storage, DAY, lambda: None) is not None
        latest = load_json(storage, LATEST)
        assert latest["run_id"] == later["run_id"] and latest["n"] == 3
