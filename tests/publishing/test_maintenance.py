"""Old dates expire, excluded users and items leave published runs; killed anywhere, both resume; readers stay right."""

import io
import itertools
from datetime import date, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.commit_log import load_json, newest_entry
from allmrec.core.storage import LocalStorage, S3Config, Storage
from allmrec.publishing import maintenance, run, suppression
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.log import LATEST, published_dates, roll_back, symlinks_key
from allmrec.publishing.reader import read_recommendations
from allmrec.publishing.run import Run
from schemas import read_as
from schemas.recommendations import ITEM, SCHEMA
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import IDENTITY, NEXT_DAY, Killed, assert_whole, mortal, nightly

USERS, ITEMS = pa.array(["u3", "u11", "unknown"]), pa.array(["item 2"])
NOTHING = {"users": 0, "items": 0, "files": 0}


def suppress(storage: Storage, run_date: date, users: pa.Array = USERS, items: pa.Array = ITEMS) -> dict[str, int]:
    with hold_lease(storage, run_date, 0.2) as lease:
        return suppression.suppress(storage, run_date, users, items, lease).counts


def expire(storage: Storage, keep: int) -> None:
    for run_date in maintenance.expired(storage, keep):
        with hold_lease(storage, run_date, 0.2) as lease:
            maintenance.expire(storage, run_date, lease)


def without(rows: list[dict]) -> list[dict]:
    """What must be left of a run's rows, by definition."""
    left = []
    for row in rows:
        if row["user_id"] not in USERS.to_pylist():
            items = [item for item in row["items"] if item["item_id"] not in ITEMS.to_pylist()]
            left.append(row | {"items": [item | {"rank": rank} for rank, item in enumerate(items, 1)]})
    return left


def named(storage: Storage) -> set[str]:
    """Keys of objects that still name one of them."""
    found = set()
    for entry in storage.list():
        data = storage.read(entry.key)
        if entry.key.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data))
            lists = table.column("items").combine_chunks().flatten().field("item_id")
            data = "\n".join([*table.column("user_id").to_pylist(), *lists.to_pylist(), ""]).encode()
        if any(f"{id}\n".encode() in data for id in [*USERS.to_pylist(), *ITEMS.to_pylist()]):
            found.add(entry.key)
    return found


def keys(storage: Storage) -> list[str]:
    return [entry.key for entry in storage.list() if "/lease/" not in entry.key]


def test_suppressed_users_and_items_are_nowhere_and_the_rest_is_as_it_was(
    storage: Storage, shop: Shop, s3: S3Config
) -> None:
    for day in (DAY, NEXT_DAY):
        nightly(storage, shop, day)
    before = {day: read_recommendations(storage.uri, day, s3).to_pylist() for day in (DAY, NEXT_DAY)}
    for day in (DAY, NEXT_DAY):
        found = suppress(storage, day)
        assert found["users"] == 2 and found["items"] > 5 and found["files"] == shop.num_shards
        assert read_recommendations(storage.uri, day, s3).to_pylist() == without(before[day])
    assert not named(storage) and "u3" in {row["user_id"] for row in before[DAY]}
    newest = load_json(storage, LATEST)
    assert newest == newest_entry(storage) and newest["run_date"] == str(NEXT_DAY) and newest["n"] == 3
    assert read_recommendations(storage.uri, s3=s3).num_rows == newest["rows"] == shop.num_users - 2
    lines = storage.read(symlinks_key(NEXT_DAY)).decode().splitlines()
    assert lines == [storage.name(file["key"]) for file in newest["files"]]
    before_that = keys(storage)
    assert suppress(storage, DAY) == suppress(storage, NEXT_DAY) == NOTHING
    assert keys(storage) == before_that
    assert nightly(storage, shop, NEXT_DAY)["rows"] == shop.num_users, "the run was published once and is done"
    assert roll_back(storage, DAY)["rows"] == shop.num_users - 2


def test_a_file_keeps_the_columns_of_the_release_that_wrote_it(
    tmp_path, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = pa.list_(pa.struct([*ITEM, pa.field("reason", pa.string())]))
    other = pa.schema([field.with_type(items) if field.name == "items" else field for field in SCHEMA])
    storage, table = LocalStorage(tmp_path), shop.table
    with monkeypatch.context() as patch:
        patch.setattr(run, "SCHEMA", other)
        patch.setattr(shop, "table", lambda *arguments: read_as(table(*arguments), other))
        nightly(storage, shop)
    before = read_recommendations(storage.uri).to_pylist()
    assert suppress(storage, DAY)["items"] > 0
    for file in load_json(storage, LATEST)["files"]:
        assert pq.read_table(io.BytesIO(storage.read(file["key"]))).schema == other
    assert read_recommendations(storage.uri).to_pylist() == without(before)


def test_the_work_of_a_run_that_is_not_published_begins_again(storage: Storage, shop: Shop) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    run.commit_shard(0, shop.table(0, run.run_id))
    assert suppress(storage, DAY, pa.array(["unknown"]), pa.array([], pa.string())) == NOTHING
    assert run.finished_shards() == {0}
    (attempt,) = storage.list(f"{run.work}/attempts/")
    storage.copy(attempt.key, f"run_date={DAY}/part-00000.parquet")  # it was about to publish
    assert suppress(storage, DAY)["files"] == 2
    assert not named(storage) and run.finished_shards() == set()
    Run.open(storage, DAY, {"bundle": "another"})  # nothing is left that says what the run was made of


def test_suppressing_that_is_killed_at_any_write_goes_on(tmp_path, shop: Shop) -> None:
    calm = LocalStorage(tmp_path / "calm")
    nightly(calm, shop)
    expected = without(read_recommendations(calm.uri).to_pylist())
    for die_at in itertools.count(1):
        storage = LocalStorage(tmp_path / str(die_at))
        nightly(storage, shop)
        before = read_recommendations(storage.uri).to_pylist()
        try:
            suppress(mortal(storage, die_at), DAY)
            break
        except Killed:
            for day in (None, DAY):
                assert read_recommendations(storage.uri, day).to_pylist() in (before, expected), f"killed at {die_at}"
        suppress(storage, DAY)
        assert not named(storage)
        assert read_recommendations(storage.uri).to_pylist() == expected
        assert read_recommendations(storage.uri, DAY).to_pylist() == expected
        assert_whole_pointers(storage)
    assert die_at > 12, "every write was tried"


def test_a_reader_who_is_overtaken_reads_again(tmp_path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    nightly(storage, shop)
    read, calls = LocalStorage.read, itertools.count()

    def overtaken(self: LocalStorage, key: str) -> bytes:
        if key.endswith(".parquet") and next(calls) == 0:
            monkeypatch.setattr(LocalStorage, "read", read)
            suppress(storage, DAY)
        return read(self, key)

    monkeypatch.setattr(LocalStorage, "read", overtaken)
    assert read_recommendations(storage.uri, DAY).num_rows == shop.num_users - 2


def test_expire_keeps_the_newest_and_what_is_current(storage: Storage, shop: Shop) -> None:
    assert maintenance.expired(storage, 1) == []
    days = [DAY + timedelta(n) for n in range(5)]
    for day in days:
        nightly(storage, shop, day)
        storage.write(f"_inputs/run_date={day}/run/part-00000.parquet", b"")
        storage.write(f"_reports/run_date={day}/report.json", b"")
    killed = Run.open(storage, DAY - timedelta(1), IDENTITY)  # an old run that never got through
    killed.commit_shard(0, shop.table(0, killed.run_id, killed.run_date))
    assert maintenance.expired(storage, 5) == [killed.run_date]
    roll_back(storage, days[1])
    expire(storage, 2)
    assert published_dates(storage) == days[1:], "the current run and all newer ones stay"
    with hold_lease(storage, days[1], 1) as lease, pytest.raises(ValueError, match="is the current one"):
        maintenance.expire(storage, days[1], lease)
    roll_back(storage, days[4])
    expire(storage, 2)
    assert published_dates(storage) == maintenance.dates(storage) == days[3:]
    assert not [key for key in keys(storage) if any(f"run_date={day}" in key for day in days[:3])]
    assert_whole(storage, load_json(storage, LATEST), shop)
    with pytest.raises(ValueError, match="nothing was published for 2026-03-01"):
        roll_back(storage, DAY)


def test_expiring_that_is_killed_at_any_write_goes_on(tmp_path, shop: Shop) -> None:
    for die_at in itertools.count(1):
        storage = LocalStorage(tmp_path / str(die_at))
        nightly(storage, shop)
        nightly(storage, shop, NEXT_DAY)
        try:
            expire(mortal(storage, die_at), 1)
            break
        except Killed:
            for day in published_dates(storage):
                assert_whole(storage, load_json(storage, f"run_date={day}/_SUCCESS"), shop)
        expire(storage, 1)
        assert maintenance.dates(storage) == [NEXT_DAY]
    assert die_at > 8, "every write was tried"


def assert_whole_pointers(storage: Storage) -> None:
    files = [load_json(storage, key)["files"] for key in (LATEST, f"run_date={DAY}/_SUCCESS")]
    assert files[0] == files[1] == newest_entry(storage)["files"]
