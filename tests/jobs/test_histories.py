"""A log that grows: the result is that of one preparation of all, and only what changed is written."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.hashing import shard_of
from jobs import prepare
from tests.jobs.test_prepare import SHOP, config_of, digests, log, prepared, write_parquet

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("in_process")]

FILTERS = {"min_item_interactions": 3, "min_user_interactions": 2, "k_core": True, "deduplicate": "last"}


def day_of(number):
    """A day's events: of some users alone, some of them twice, some bad."""
    rows = [row for row in log(400, seed=number) if row["timestamp"] != 3]
    few = {f"u{user}" for user in range(60) if user % 4 == number % 4}
    return [row for row in rows if row["user_id"] in few or not row["user_id"]]


@pytest.fixture(scope="module")
def shop_path(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("shop") / "shop.parquet", SHOP)


def files_of(storage):
    return [shard["events"] for shard in read_manifest(storage.at("histories")).stats["shards"]]


@pytest.mark.parametrize(("days", "filters"), [(10, {}), (3, FILTERS)])
def test_days_one_by_one_give_what_one_preparation_of_all_gives(tmp_path, shop_path, days, filters):
    grown = config_of(tmp_path / "grown", tmp_path / "log", shop_path, **filters)
    before = None
    for number in range(days):
        write_parquet(tmp_path / "log" / f"day-{number:02d}.parquet", day_of(number))
        storage, _ = prepared(grown)
        files = files_of(storage)
        users = pa.array([row["user_id"] for row in day_of(number) if row["user_id"]])
        if before is not None:
            changed = {shard for shard, (old, new) in enumerate(zip(before, files, strict=True)) if old != new}
            # Rejected rows without a user are of a shard too.
            assert set(shard_of(users, 5)) <= changed
        before = files
    whole, _ = prepared(config_of(tmp_path / "whole", tmp_path / "log", shop_path, **filters))
    assert digests(storage) == digests(whole)
    assert not list(storage.list("drafts/"))
    stats = read_manifest(storage.at("histories")).stats
    kept = {*files, *(shard["rejected"] for shard in stats["shards"]), stats["items"]}
    assert {entry.key for entry in storage.at("histories").list()} == {"manifest.json", *kept}


def test_a_day_of_one_user_writes_one_shard(tmp_path, shop_path):
    write_parquet(tmp_path / "log" / "a.parquet", log())
    config = config_of(tmp_path / "runs", tmp_path / "log", shop_path)
    storage, _ = prepared(config)
    before = files_of(storage)
    stamps = {
        shard: storage.root.joinpath(f"sequences/part-{shard:05d}.parquet").stat().st_mtime_ns for shard in range(5)
    }
    write_parquet(tmp_path / "log" / "b.parquet", [{**log()[0], "user_id": "u7", "timestamp": 1_600_000_000}])
    prepared(config)
    mine = shard_of(pa.array(["u7"]), 5)[0]
    changed = [shard for shard, (old, new) in enumerate(zip(before, files_of(storage), strict=True)) if old != new]
    assert changed == [mine]
    touched = [
        shard
        for shard, stamp in stamps.items()
        if storage.root.joinpath(f"sequences/part-{shard:05d}.parquet").stat().st_mtime_ns != stamp
    ]
    assert touched == [mine]


def test_a_file_that_comes_while_others_are_read_is_read_by_the_next_run(tmp_path, shop_path, monkeypatch):
    write_parquet(tmp_path / "log" / "a.parquet", log())
    config = config_of(tmp_path / "runs", tmp_path / "log", shop_path)

    def open_sources_and_wait(context):
        sources = open_sources(context)
        write_parquet(tmp_path / "log" / "b.parquet", log(seed=1))
        return sources

    open_sources = prepare.open_sources
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "open_sources", open_sources_and_wait)
        prepared(config)
    storage, _ = prepared(config)
    assert digests(storage) == digests(prepared(config_of(tmp_path / "whole", tmp_path / "log", shop_path))[0])


def test_other_filters_do_not_read_the_log_again(tmp_path, shop_path):
    log_path = write_parquet(tmp_path / "log.parquet", log())
    storage, _ = prepared(config_of(tmp_path / "runs", log_path, shop_path))
    before, tables = read_manifest(storage.at("histories")), digests(storage)
    prepared(config_of(tmp_path / "runs", log_path, shop_path, max_history=3))
    assert vars(read_manifest(storage.at("histories"))) == vars(before)
    assert digests(storage)["sequences"] != tables["sequences"]
    assert max(len(row["item_index"]) for row in read_table(storage.at("sequences")).to_pylist()) == 3
    prepared(config_of(tmp_path / "runs", log_path, shop_path))
    assert digests(storage) == tables


def test_a_file_that_changed_or_went_has_everything_read_again(tmp_path, shop_path):
    first, second = (
        write_parquet(tmp_path / "log" / f"{name}.parquet", log(seed=seed)) for name, seed in (("a", 1), ("b", 2))
    )
    config = config_of(tmp_path / "runs", tmp_path / "log", shop_path)
    prepared(config)
    write_parquet(first, log(seed=3))
    storage, _ = prepared(config)
    assert digests(storage) == digests(prepared(config_of(tmp_path / "changed", tmp_path / "log", shop_path))[0])
    second.unlink()
    storage, _ = prepared(config)
    assert digests(storage) == digests(prepared(config_of(tmp_path / "gone", tmp_path / "log", shop_path))[0])


def test_items_keep_their_numbers_and_new_ones_come_after_them(tmp_path):
    rows = [{**row, "asin": f"i{30 + number % 4}"} if number % 10 == 0 else row for number, row in enumerate(log(200))]
    write_parquet(tmp_path / "log" / "a.parquet", rows)
    shop_path = write_parquet(tmp_path / "shop.parquet", SHOP)
    config = config_of(tmp_path / "runs", tmp_path / "log", shop_path, max_rejected_fraction=0.5)
    storage, stats = prepared(config)
    before = read_table(storage.at("items")).column("item_id").to_pylist()
    assert stats["done"]["rejected as unknown_item"] > 20

    # i3 goes; a and i30 come, of which i30 is named by rows that were rejected.
    more = [{"asin": name, "title": f"New {name}"} for name in ("a", "i30")]
    write_parquet(shop_path, [item for item in SHOP if item["asin"] != "i3"] + more)
    write_parquet(tmp_path / "log" / "b.parquet", [{**row, "asin": "a"} for row in log(20, seed=5)[:10]])
    storage, stats = prepared(config)
    items = read_table(storage.at("items")).to_pylist()
    assert [item["item_id"] for item in items] == [*before, "a", "i30"]
    gone = next(item for item in items if item["item_id"] == "i3")
    assert gone["available"] is False and gone["title"] == "Item & 3", "the words that it was listed with last"
    assert next(item for item in items if item["item_id"] == "i30")["popularity"] > 0
    found = {item for row in read_table(storage.at("sequences")).to_pylist() for item in row["item_index"]}
    assert {31, 32} <= found


@given(
    catalogues=st.lists(st.sets(st.integers(0, 5), min_size=2), min_size=2, max_size=4),
    lost=st.lists(st.booleans(), min_size=4, max_size=4),
)
@example(catalogues=[{0, 1, 2}, {1, 2}, {1, 2, 3}], lost=[False, False, True, False])
@settings(max_examples=6, deadline=None)
def test_items_that_leave_the_catalogue_keep_their_events_however_much_is_read(catalogues, lost):
    """Beside a workspace that reads new files alone, one that reads all of the log each time: its shards are others."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for step, catalogue in enumerate(catalogues):
            write_parquet(root / "shop.parquet", [SHOP[number] for number in sorted(catalogue)])
            events = [
                {**row, "asin": f"i{int(row['asin'][1:]) % 6}"} for row in day_of(step) if row["asin"] != "nothing"
            ]
            write_parquet(root / "log" / f"{step}.parquet", events)
            if lost[step]:
                (root / "log" / f"{step - 1}.parquet").unlink(missing_ok=True)
            found = []
            for name, shards in (("grown", 2), ("read again", 1 + step)):
                data = {"max_rejected_fraction": 1, "num_shards": shards}
                storage, _ = prepared(config_of(root / name, root / "log", root / "shop.parquet", **data))
                ids = read_table(storage.at("items")).column("item_id").to_pylist()
                rows = read_table(storage.at("sequences")).sort_by("user_id").select(["user_id", "item_index"])
                found.append((ids, rows.to_pylist()))
            assert found[0] == found[1]
            known = {f"i{number}" for number in set().union(*catalogues[: step + 1])}
            assert set(ids) == known


def test_a_catalogue_that_grows_by_files_gives_the_numbers_of_one_preparation(tmp_path):
    shop = [SHOP[20:], [{"asin": "a", "title": "A"}, *SHOP[5:20]], SHOP[:5]]
    config = config_of(tmp_path / "grown", tmp_path / "log", tmp_path / "shop", max_rejected_fraction=0.9)
    for number, items in enumerate(shop):
        write_parquet(tmp_path / "shop" / f"{number}.parquet", items)
        write_parquet(tmp_path / "log" / f"{number}.parquet", day_of(number))
        storage, _ = prepared(config)
    scratch = config_of(tmp_path / "scratch", tmp_path / "log", tmp_path / "shop", max_rejected_fraction=0.9)
    assert digests(storage) == digests(prepared(scratch)[0])
    ids = read_table(storage.at("items")).column("item_id").to_pylist()
    assert ids == [item["asin"] for items in shop for item in sorted(items, key=lambda item: item["asin"])]


def test_excluded_users_appear_nowhere(tmp_path, shop_path):
    rows = log()
    write_parquet(tmp_path / "log" / "a.parquet", rows)
    config = config_of(tmp_path / "runs", tmp_path / "log", shop_path)
    storage, _ = prepared(config)
    assert any(form in storage_text(storage) for form in SPELLINGS)

    lists = {
        "excluded_users": {"paths": [str(write_parquet(tmp_path / "users.parquet", [{"user_id": "u7"}]))]},
        "excluded_items": {"paths": [str(write_parquet(tmp_path / "items.parquet", [{"item_id": "i2"}]))]},
    }
    config = config_of(tmp_path / "runs", tmp_path / "log", shop_path, **lists)
    storage, stats = prepared(config)
    assert not any(form in storage_text(storage) for form in (*SPELLINGS, "Item & 2'"))
    item = next(item for item in read_table(storage.at("items")).to_pylist() if item["item_id"] == "i2")
    assert (item["title"], item["available"], item["popularity"]) == (None, False, 0)
    scratch, stats = prepared(config_of(tmp_path / "scratch", tmp_path / "log", shop_path, **lists))
    assert digests(storage) == digests(scratch)
    gone = sum(row["user_id"] == "u7" or row["asin"] == "i2" for row in rows)
    assert stats["done"]["left out as excluded"] == gone
    counts = {name: stats["done"][name] for name in stats["done"] if name.startswith("data.excluded")}
    assert set(counts.values()) == {1}, "listed and known, of users and of items"

    # Who is gone already is known: the histories remember it, also where the log has lost them.
    write_parquet(tmp_path / "log" / "a.parquet", [row for row in rows if row["user_id"] != "u7"])
    storage, stats = prepared(config)
    assert stats["done"]["data.excluded_users known"] == 1
    write_parquet(tmp_path / "users.parquet", [{"user_id": user} for user in ("u7", "no-user", "no one")])
    with pytest.raises(ValueError, match=r"data\.excluded_users: of 3 ids listed, 1 are known, less than .* 0\.5"):
        prepared(config)


SPELLINGS = ("'u7'", '"u7"')  # of a user's id in a column, and in the JSON of a rejected row


def storage_text(storage):
    """All tables and manifests of a run as text."""
    names = [entry.key for entry in storage.list()]
    tables = [str(pq.read_table(storage.root / name).to_pylist()) for name in names if name.endswith(".parquet")]
    return " ".join([*tables, *(storage.read(name).decode() for name in names if name.endswith(".json"))])
