"""Vectors are published with the recommendations: resumed, replaced, suppressed, verified and expired as these are."""

import io
import itertools
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.artifacts import to_parquet
from allmrec.core.commit_log import load_json
from allmrec.core.storage import LocalStorage, S3Config, Storage
from allmrec.publishing import maintenance, suppression
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.log import LATEST
from allmrec.publishing.reader import published_runs, read_vectors, verify_run
from allmrec.publishing.run import Run
from schemas import item_vectors, user_vectors
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import IDENTITY, NEXT_DAY, Killed, mortal

DIM = 3


def vectors(shop: Shop, run: Run, shard: int) -> dict[str, pa.Table]:
    users = shop.tables[shard].column("user_id").to_pylist()
    items = [f"item {n}" for n in range(1, shop.num_items)][shard :: shop.num_shards]
    same = {"run_date": run.run_date, "bundle": "v1", "run_id": run.run_id}
    return {
        "users": pa.Table.from_pylist(
            [{**same, "user_id": id, "vector": of(id)} for id in users], user_vectors.schema(DIM)
        ),
        "items": pa.Table.from_pylist(
            [{**same, "item_id": id, "vector": of(id)} for id in items], item_vectors.schema(DIM)
        ),
    }


def of(id: str) -> list[float]:
    return np.random.default_rng(list(id.encode())).normal(size=DIM).tolist()


def nightly(storage: Storage, shop: Shop, run_date: date = DAY, identity: Any = IDENTITY) -> dict[str, Any]:
    """What the nightly job does with `publish_vectors`, without its models; with the vectors that it keeps."""
    with hold_lease(storage, run_date, 0.2) as lease:
        run, digests = Run.open(storage, run_date, identity, lease), {}
        for shard in range(shop.num_shards):
            kept = vectors(shop, run, shard)["users"].select(["user_id", "vector"])
            storage.write(f"_inputs/run_date={run_date}/{run.run_id}/users/part-{shard}.parquet", to_parquet(kept))
            if shard not in run.finished_shards():
                run.commit_shard(shard, shop.table(shard, run.run_id, run_date), None, vectors(shop, run, shard))
            digests[shard] = run.read_shard(shard)[1]
        entry = run.publish(shop.num_shards, digests, lease)
        maintenance.tidy(storage, run_date, lease)
        return entry


def suppress(storage: Storage, users: list[str], items: list[str]) -> dict[str, int]:
    with hold_lease(storage, DAY, 0.2) as lease:
        return suppression.suppress(
            storage, DAY, pa.array(users, pa.string()), pa.array(items, pa.string()), lease
        ).counts


def ids(storage: Storage, s3: S3Config | None = None, run_date: date | None = None) -> dict[str, list[str]]:
    """Of the published vectors, which are those that the ids say."""
    found = {}
    for kind, name in (("users", "user_id"), ("items", "item_id")):
        table = read_vectors(storage.uri, kind, run_date, s3)
        found[kind] = sorted(table.column(name).to_pylist())
        for id, vector in zip(table.column(name).to_pylist(), table.column("vector").to_pylist(), strict=True):
            np.testing.assert_allclose(vector, of(id), rtol=1e-6)
    return found


def named(storage: Storage, names: set[str]) -> list[str]:
    """The Parquet files that name one of them."""
    found = []
    for entry in storage.list():
        if entry.key.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(storage.read(entry.key)))
            text = str(table.to_pydict())
            found += [entry.key] if any(f"'{name}'" in text for name in names) else []
    return found


def test_they_are_published_replaced_verified_and_expired(storage: Storage, shop: Shop, s3: S3Config) -> None:
    entry = nightly(storage, shop)
    everyone = sorted(f"u{n}" for n in range(shop.num_users))
    everything = sorted(f"item {n}" for n in range(1, shop.num_items))
    assert ids(storage, s3) == {"users": everyone, "items": everything}
    manifest = load_json(storage, f"run_date={DAY}/_SUCCESS")
    assert manifest["vectors"] == entry["vectors"] == load_json(storage, LATEST)["vectors"]
    assert [file["key"] for file in entry["vectors"]["items"]] == [
        f"run_date={DAY}/_vectors/items/part-{shard:05d}.parquet" for shard in range(shop.num_shards)
    ]
    assert verify_run(storage)["files"] == 3 * shop.num_shards and published_runs(storage)[0]["rows"] == shop.num_users

    replaced = nightly(storage, shop, identity={**IDENTITY, "bundle": "v1", "more": 1})
    assert replaced["run_id"] != entry["run_id"] and ids(storage, s3)["users"] == everyone
    assert {file["key"] for file in replaced["vectors"]["users"]}.isdisjoint(
        f["key"] for f in entry["vectors"]["users"]
    )
    left = [found.key for found in storage.list(f"run_date={DAY}/") if found.key.endswith(".parquet")]
    assert len(left) == 3 * shop.num_shards, "nothing of the run before"

    nightly(storage, shop, NEXT_DAY)
    with hold_lease(storage, DAY, 0.2) as lease:
        maintenance.expire(storage, DAY, lease)
    assert not [found.key for found in storage.list() if f"run_date={DAY}" in found.key]
    assert ids(storage, s3) == {"users": everyone, "items": everything}


def test_suppressed_users_and_items_are_in_none(storage: Storage, shop: Shop, s3: S3Config) -> None:
    nightly(storage, shop)
    before = ids(storage, s3)
    assert suppress(storage, ["u3"], [])["users"] == 1
    assert suppress(storage, [], ["item 11"])["files"] > 0, "also an item that is in no list"
    after = ids(storage, s3)
    assert after["users"] == [user for user in before["users"] if user != "u3"]
    assert after["items"] == [item for item in before["items"] if item != "item 11"]
    assert not named(storage, {"u3", "item 11"}), "nor in what is kept for the next run"
    assert named(storage, {"u4"}) and verify_run(storage)["files"] == 3 * shop.num_shards
    assert load_json(storage, LATEST)["vectors"] == load_json(storage, f"run_date={DAY}/_SUCCESS")["vectors"]
    keys = [entry.key for entry in storage.list() if "/lease/" not in entry.key]
    assert suppress(storage, ["u3"], ["item 11"]) == {"users": 0, "items": 0, "files": 0}
    assert [entry.key for entry in storage.list() if "/lease/" not in entry.key] == keys


def test_suppressing_a_run_in_progress_leaves_no_vector(storage: Storage, shop: Shop) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    kept = vectors(shop, run, 0)["users"].select(["user_id", "vector"])
    user = kept.column("user_id")[0].as_py()
    key = f"_inputs/run_date={DAY}/{run.run_id}/users/part-00000.parquet"
    storage.write(key, to_parquet(kept))
    suppress(storage, [user], [])
    assert not named(storage, {user}) and storage.exists(key), "the others' stay: their shard was only begun"
    run.commit_shard(0, shop.table(0, run.run_id), None, vectors(shop, run, 0))
    other = kept.column("user_id")[1].as_py()
    assert suppress(storage, [other], [])["files"] == 2, "the list and the vector"
    assert not named(storage, {other}) and run.finished_shards() == set()


def test_a_losing_attempt_leaves_no_vectors_and_damage_is_named(storage: Storage, shop: Shop) -> None:
    run = Run.open(storage, DAY, IDENTITY)
    assert run.commit_shard(0, shop.table(0, run.run_id), None, vectors(shop, run, 0))
    there = [entry.key for entry in storage.list(f"{run.work}/attempts/")]
    assert len(there) == 3 and not run.commit_shard(0, shop.table(0, run.run_id), None, vectors(shop, run, 0))
    assert [entry.key for entry in storage.list(f"{run.work}/attempts/")] == there
    storage.write(next(key for key in there if "users" in key), b"")
    with pytest.raises(ValueError, match=r"users.parquet is damaged; to make shard 0 again"):
        run.read_shard_vectors(0)


def test_killed_at_any_write_they_are_published_whole(tmp_path, shop: Shop) -> None:
    calm = LocalStorage(tmp_path / "calm")
    expected = nightly(calm, shop)["vectors"]
    for die_at in itertools.count(1):
        storage = LocalStorage(tmp_path / str(die_at))
        try:
            nightly(mortal(storage, die_at), shop)
            break
        except Killed:
            if storage.exists(LATEST):
                assert ids(storage) == ids(calm), f"killed at {die_at}"
        assert nightly(storage, shop)["vectors"] == expected
        assert ids(storage) == ids(calm)
    assert die_at > 20, "every write was tried"
