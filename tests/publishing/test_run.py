"""The publish protocol: resuming, racing, refusing and rolling back, on a folder and on S3."""

import io
import itertools
import json
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from threading import Event, Thread
from typing import Any

import pyarrow.parquet as pq
import pytest

from allmrec.core.artifacts import sha256
from allmrec.core.commit_log import last_number, load_json
from allmrec.core.storage import Entry, LocalStorage, S3Config, Storage, open_storage
from allmrec.nightly.audit import audit_finished_shard
from allmrec.publishing.lease import RunHeld, hold_lease
from allmrec.publishing.log import LATEST, publish_entry, roll_back
from allmrec.publishing.run import Run
from tests.nightly.conftest import DAY, Shop
from tests.s3_fixtures import Proxy, new_bucket, proxied, together

NEXT_DAY = date(2026, 3, 2)
IDENTITY = {"bundle": "v1", "config": {"top_k": 5, "ranker": "llm"}}


def nightly(storage: Storage, shop: Shop, run_date: date = DAY, lease_s: float = 60) -> dict[str, Any]:
    """What the nightly job does, without its models."""
    run = Run.open(storage, run_date, IDENTITY)
    if entry := run.published():
        return entry
    with hold_lease(storage, run_date, lease_s) as lease:
        for shard in sorted(set(range(shop.num_shards)) - run.finished_shards()):
            assert run.commit_shard(shard, shop.table(shard, run.run_id, run_date), {"counts": {"users": 1}})
        return run.publish(shop.num_shards, audit(run, shop), lease)


def audit(run: Run, shop: Shop) -> dict[int, str]:
    digests = {}
    for shard in range(shop.num_shards):
        seen = shop.seen(shard)
        digests[shard] = audit_finished_shard(run, shard, seen.user_ids, seen, shop.catalogue, shop.top_k)
    return digests


def visible(storage: Storage) -> dict[str, Any]:
    """Everything that readers may look at, except the times and place of publishing."""
    objects: dict[str, Any] = {}
    for entry in storage.list():
        data = storage.read(entry.key)
        if entry.key.endswith(".json"):
            objects[entry.key] = json.loads(data) | {"published_at": None}
        else:
            objects[entry.key] = data.replace(storage.uri.encode(), b"")
    return {key: value for key, value in objects.items() if not key.startswith(("_runs/", "_probe/"))}


def assert_whole(storage: Storage, published: dict[str, Any], shop: Shop) -> None:
    """What a log entry, `latest.json` or `_SUCCESS` points at is one whole run."""
    assert len(published["files"]) == shop.num_shards
    users: set[str] = set()
    for file in published["files"]:
        data = storage.read(file["key"])
        assert sha256(data) == file["sha256"] and len(data) == file["size"]
        table = pq.read_table(io.BytesIO(data))
        assert table.column("run_id").unique().to_pylist() == [published["run_id"]]
        users |= set(table.column("user_id").to_pylist())
    assert len(users) == shop.num_users


def test_a_run_is_published_as_documented(storage: Storage, shop: Shop) -> None:
    entry = nightly(storage, shop)
    success = load_json(storage, "run_date=2026-03-01/_SUCCESS")
    assert load_json(storage, LATEST) == load_json(storage, "_log/00000001.json") == entry
    assert entry["manifest"] == "run_date=2026-03-01/_SUCCESS" and entry["n"] == 1
    assert (
        success["identity"] == IDENTITY
        and success["rows"] == shop.num_users
        and success["facts"] == {"counts": {"users": 2}}
    )
    assert [file["key"] for file in success["files"]] == [f"run_date=2026-03-01/part-0000{n}.parquet" for n in (0, 1)]
    assert_whole(storage, entry, shop)


def test_publishing_again_changes_nothing(storage: Storage, shop: Shop) -> None:
    entry = nightly(storage, shop)
    before = visible(storage)
    run = Run.open(storage, DAY, IDENTITY)
    assert run.published() == entry
    assert run.publish(shop.num_shards, {}) == entry
    assert visible(storage) == before


def test_another_run_of_the_date_is_refused_and_says_what_differs(storage: Storage, shop: Shop) -> None:
    Run.open(storage, DAY, IDENTITY)
    other = {"bundle": "v1", "config": {"top_k": 7, "ranker": "llm"}, "code": "2"}
    differs = r"code was None and is '2'; config\.top_k was 5 and is 7\. "
    with pytest.raises(ValueError, match=differs):
        Run.open(storage, DAY, other)
    nightly(storage, shop)
    for entry in list(storage.list("_runs/")):
        storage.delete(entry.key)  # expired
    with pytest.raises(ValueError, match=differs):
        Run.open(storage, DAY, other)


def test_a_losing_attempt_leaves_nothing(storage: Storage, shop: Shop) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    runs = [pickle.loads(pickle.dumps(run)) for _ in range(2)] * 4
    won = together([partial(r.commit_shard, 0, shop.table(0, run.run_id)) for r in runs])
    assert sorted(won) == [False] * 7 + [True]
    assert len(list(storage.list(f"{run.work}/attempts/"))) == 1
    assert run.finished_shards() == {0}


def test_shards_must_be_finished_and_audited(storage: Storage, shop: Shop) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    run.commit_shard(0, shop.table(0, run.run_id))
    _, digest = run.read_shard(0)
    with pytest.raises(ValueError, match=r"shards \[1\] are not finished and audited"):
        run.publish(2, {0: digest, 1: digest})
    run.commit_shard(1, shop.table(1, run.run_id))
    with pytest.raises(ValueError, match=r"shards \[1\] are not finished and audited"):
        run.publish(2, {0: digest})
    with pytest.raises(ValueError, match="is not what was audited"):
        run.publish(2, {0: digest, 1: digest})
    assert visible(storage) == {}


def test_rows_of_another_run_are_refused(storage: Storage, shop: Shop) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    run.commit_shard(0, shop.table(0, "another run"))
    run.commit_shard(1, shop.table(1, run.run_id, NEXT_DAY))
    with pytest.raises(ValueError, match=f"shard 0: run_id is not {run.run_id} everywhere"):
        audit_finished_shard(run, 0, shop.seen(0).user_ids, shop.seen(0), shop.catalogue, shop.top_k)
    with pytest.raises(ValueError, match="shard 1: run_date is not 2026-03-01 everywhere"):
        audit_finished_shard(run, 1, shop.seen(1).user_ids, shop.seen(1), shop.catalogue, shop.top_k)


@pytest.mark.parametrize("damage", ["is damaged", "is missing"])
def test_a_damaged_attempt_is_named_and_can_be_made_again(storage: Storage, shop: Shop, damage: str) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    for shard in range(shop.num_shards):
        run.commit_shard(shard, shop.table(shard, run.run_id))
    attempt = next(entry.key for entry in storage.list(f"{run.work}/attempts/part-00001"))
    data = storage.read(attempt)
    storage.delete(attempt)
    if damage == "is damaged":
        storage.write(attempt, data[:-1] + b"?")
    entry = f"{run.work}/shards/part-00001.json"
    with pytest.raises(ValueError, match=f"{attempt} {damage}; to make shard 1 again, delete .*{entry}"):
        audit(run, shop)
    storage.delete(entry)
    assert_whole(storage, nightly(storage, shop), shop)


def test_a_part_that_arrived_cut_off_is_never_published(moto_endpoint: str, shop: Shop) -> None:
    class CutsOff(Proxy):
        """And says that all is well, as no store should: the body's hash is in its signature."""

        def forward(self) -> None:
            if self.command == "PUT" and "attempts/part-00001" in self.path:
                half = int(self.headers["Content-Length"]) // 2
                self.headers.replace_header("Content-Length", str(half))
                self.close_connection = True
            super().forward()

        do_PUT = forward

    s3 = S3Config(endpoint_url=moto_endpoint, region="us-east-1", addressing_style="path")
    with proxied(s3, CutsOff) as cutting:
        storage = open_storage(new_bucket(s3), cutting)
        with pytest.raises(
            ValueError, match=r"attempts/part-00001-\w+\.parquet is damaged; to make shard 1 again, delete"
        ):
            nightly(storage, shop)
        assert visible(storage) == {}


def test_a_stray_file_beside_the_published_ones_is_refused(storage: Storage, shop: Shop) -> None:
    storage.write("run_date=2026-03-01/part-00002.parquet", b"of a run with more shards")
    with pytest.raises(ValueError, match=r"1 files are not of run .*part-00002\.parquet"):
        nightly(storage, shop)
    assert not storage.exists("run_date=2026-03-01/_SUCCESS") and not storage.exists(LATEST)


def test_a_run_that_was_taken_over_does_not_publish(storage: Storage, shop: Shop) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    for shard in range(shop.num_shards):
        run.commit_shard(shard, shop.table(shard, run.run_id))
    with hold_lease(storage, DAY, 60) as lease:
        storage.at(f"_runs/run_date={DAY}/lease").create(
            "00000002.json", b'{"host": "elsewhere", "pid": 1, "started": "now"}'
        )
        with pytest.raises(RunHeld, match="taken over by process 1 on elsewhere"):
            run.publish(shop.num_shards, audit(run, shop), lease)
    assert visible(storage) == {}


def test_a_rollback_is_one_more_entry(storage: Storage, shop: Shop) -> None:
    first, second = nightly(storage, shop), nightly(storage, shop, NEXT_DAY)
    assert load_json(storage, LATEST) == second
    back = roll_back(storage, DAY)
    assert back["n"] == 3 and back["run_id"] == first["run_id"] and load_json(storage, LATEST) == back
    assert_whole(storage, back, shop)
    nightly(storage, shop, NEXT_DAY)  # the scheduler tries the day again
    assert load_json(storage, LATEST) == back, "a run that was published once does not undo the rollback"
    with pytest.raises(ValueError, match="nothing was published for 2026-03-05"):
        roll_back(storage, date(2026, 3, 5))


def test_of_two_writers_of_one_log_number_one_wins(storage: Storage, shop: Shop) -> None:
    nightly(storage, shop)
    manifest = load_json(storage, "run_date=2026-03-01/_SUCCESS")
    results = together([partial(publish_entry, storage, manifest, 2)] * 8)
    assert sum(result is not None for result in results) == 1
    entries = together([partial(roll_back, storage, DAY)] * 4)
    assert sorted(entry["n"] for entry in entries) == [3, 4, 5, 6]  # type: ignore[index]
    assert load_json(storage, LATEST)["n"] == 6


def test_two_runs_of_one_date_at_once_and_a_reader_throughout(storage: Storage, shop: Shop) -> None:
    """One publishes, the other ends with a clear message; the reader never sees part of a run or a mixture."""
    nightly(storage, shop)
    over, polls, broken = Event(), itertools.count(), []

    def poll() -> None:
        while not over.is_set():
            try:
                assert_whole(storage, load_json(storage, LATEST), shop)
                next(polls)
            except Exception as error:
                broken.append(error)

    reader = Thread(target=poll)
    reader.start()

    def slowly(run_date: date) -> dict[str, Any]:
        run = Run.open(storage, run_date, IDENTITY)
        with hold_lease(storage, run_date, 3) as lease:
            time.sleep(1.5)
            for shard in range(shop.num_shards):
                run.commit_shard(shard, shop.table(shard, run.run_id, run_date))
            return run.publish(shop.num_shards, audit(run, shop), lease)

    ended = together([partial(slowly, NEXT_DAY), partial(slowly, NEXT_DAY)])
    over.set()
    reader.join()
    assert not broken and next(polls) > 3
    refused = [result for result in ended if isinstance(result, RunHeld)]
    entries = [result for result in ended if isinstance(result, dict)]
    assert len(refused) == 1 and "is being made by process" in str(refused[0])
    assert len(entries) == 1 and load_json(storage, LATEST) == entries[0]
    assert entries[0]["n"] == 2 and entries[0]["run_date"] == "2026-03-02"


def test_without_leases_the_protocol_is_still_right(storage: Storage, shop: Shop) -> None:
    """As after pauses so long that four processes each believe that the others are dead."""

    def work() -> dict[str, Any]:
        run = Run.open(storage, DAY, IDENTITY)
        for shard in range(shop.num_shards):
            run.commit_shard(shard, shop.table(shard, run.run_id))
        return run.publish(shop.num_shards, audit(run, shop))

    entries = together([work] * 4)
    assert all(entry == entries[0] for entry in entries), entries
    assert [entry.key for entry in storage.list("_log/")] == ["_log/00000001.json"]
    assert_whole(storage, load_json(storage, LATEST), shop)


class ObservedStorage(Storage):
    """Hands every operation to `around(key, writes, operation)`, which may do something else."""

    def __init__(self, inner: Storage, around: Callable[[str, bool, Callable[[], Any]], Any]):
        self.inner, self.uri, self.around = inner, inner.uri, around

    def at(self, key: str) -> Storage:
        return ObservedStorage(self.inner.at(key), self.around)

    def write(self, key: str, data: bytes) -> None:
        self.around(key, True, lambda: self.inner.write(key, data))

    def create(self, key: str, data: bytes) -> bool:
        return self.around(key, True, lambda: self.inner.create(key, data))

    def copy(self, source: str, target: str) -> None:
        self.around(target, True, lambda: self.inner.copy(source, target))

    def delete(self, key: str) -> None:
        self.around(key, True, lambda: self.inner.delete(key))

    def read(self, key: str, start: int = 0, stop: int | None = None) -> bytes:
        return self.around(key, False, lambda: self.inner.read(key, start, stop))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        return iter(self.around(prefix, False, lambda: list(self.inner.list(prefix))))

    def exists(self, key: str) -> bool:
        return self.around(key, False, lambda: self.inner.exists(key))

    def arrow(self) -> tuple[Any, str]:
        return self.inner.arrow()


class Killed(BaseException):
    """Not an Exception, so that nothing tidies up as after an error."""


def mortal(storage: Storage, die_at: int) -> Storage:
    """The storage of a process that is killed when it begins its `die_at`-th write."""
    writes = itertools.count(1)
    dead = Event()

    def around(key: str, is_write: bool, operation: Callable[[], Any]) -> Any:
        if key.endswith(".beat"):  # comes by the clock: not at a point that can be counted
            return None if dead.is_set() else operation()
        if is_write and next(writes) == die_at:
            dead.set()
        if dead.is_set():
            raise Killed
        return operation()

    return ObservedStorage(storage, around)


def test_a_run_killed_at_any_write_resumes_to_the_same_result(storage: Storage, shop: Shop) -> None:
    lease_s = 0.2
    nightly(storage.at("undisturbed"), shop, lease_s=lease_s)
    expected = visible(storage.at("undisturbed"))
    for die_at in itertools.count(1):
        place = storage.at(f"killed-{die_at}")
        try:
            nightly(mortal(place, die_at), shop, lease_s=lease_s)
            break
        except Killed:
            for key in (LATEST, "_log/00000001.json", "run_date=2026-03-01/_SUCCESS"):
                if place.exists(key):
                    assert_whole(place, load_json(place, key), shop)
            assert_whole(place, nightly(place, shop, lease_s=lease_s), shop)
            assert visible(place) == expected, f"killed at write {die_at}"
    assert die_at > 15, "every write of a run was tried"


def interrupted(storage: Storage, at: int, act: Callable[[], object]) -> tuple[Storage, Event]:
    """A storage before whose `at`-th operation another process acts; and whether it came to that."""
    operations = itertools.count(1)
    acted = Event()

    def around(key: str, is_write: bool, operation: Callable[[], Any]) -> Any:
        if next(operations) == at:
            acted.set()
            act()
        return operation()

    return ObservedStorage(storage, around), acted


def test_a_run_that_another_process_publishes_meanwhile_is_published_once(tmp_path, shop: Shop) -> None:
    for at in itertools.count(1):
        storage = LocalStorage(tmp_path / str(at))
        run = Run.open(storage, DAY, IDENTITY)
        for shard in range(shop.num_shards):
            run.commit_shard(shard, shop.table(shard, run.run_id))
        audited = audit(run, shop)
        slow, met = interrupted(storage, at, lambda run=run, audited=audited: run.publish(shop.num_shards, audited))
        entry = replace(run, storage=slow).publish(shop.num_shards, audited)
        assert [found.key for found in storage.list("_log/")] == ["_log/00000001.json"], f"before operation {at}"
        assert load_json(storage, LATEST) == entry
        if not met.is_set():
            break
    assert at > 10, "every operation of publishing was tried"


def test_an_older_copy_never_stays_latest(tmp_path, shop: Shop) -> None:
    nightly(LocalStorage(tmp_path), shop)
    for at in itertools.count(1):
        storage = LocalStorage(tmp_path)
        slow, met = interrupted(storage, at, lambda storage=storage: roll_back(storage, DAY))
        roll_back(slow, DAY)
        assert load_json(storage, LATEST)["n"] == last_number(storage), f"before operation {at}"
        if not met.is_set():
            break
    assert at > 5, "every operation of a rollback was tried"
