import gzip
import json
from collections import Counter
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.artifacts import find_manifest, read_manifest, read_table
from allmrec.core.hashing import shard_of
from allmrec.core.storage import S3Config, open_storage
from allmrec.data.prepare.shuffle import Shuffle
from allmrec.data.sequences import Sequences
from allmrec.data.sources import readers
from jobs import histories, prepare
from jobs.config import Config
from jobs.prepare import STEP
from jobs.runtime.console import Console
from jobs.runtime.step import execute

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("in_process")]

SHOP = [
    {"asin": f"i{number}", "title": f"Item &amp; {number}", "description": ["One.", "Two."]} for number in range(30)
]


def log(count=600, seed=0):
    """Events of 60 users, every tenth of them twice, and four that cannot be used."""
    random = np.random.default_rng(seed)
    rows = [
        {
            "user_id": f"u{random.integers(60)}",
            "asin": f"i{int(30 * random.random() ** 2)}",
            "timestamp": 1_500_000_000 + 86_400 * int(random.integers(30)),
            "rating": float(random.integers(1, 6)),
        }
        for _ in range(count)
    ]
    first = rows[0]
    bad = [
        {**first, "asin": "nothing"},
        {**first, "user_id": ""},
        {**first, "timestamp": 3},
        {**first, "timestamp": None},
    ]
    return [*rows, *rows[::10], *bad]


def config_of(root, log_path, shop_path, format="parquet", storage=None, **data):
    columns = {"item_id": "asin"}
    return Config(
        name="test",
        root=str(root),
        storage=storage or S3Config(),
        evaluation={"num_negatives": 5, "matched_strata": 2},
        data={
            "num_shards": 5,
            "max_rejected_fraction": 0.2,
            "interactions": {"paths": [str(log_path)], "format": format, "columns": columns},
            "items": {"paths": [str(shop_path)], "format": format, "columns": columns},
            **data,
        },
    )


def write_jsonl(path, rows, *junk):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*(json.dumps(row) for row in rows), *junk])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def prepared(config):
    """Run the step; the run's storage and the stats that it logs."""
    console = Console(log_json=True)
    stats: dict = {}
    console.event = lambda name, **numbers: stats.update({name: numbers})  # type: ignore[method-assign]
    execute(STEP, config, console)
    return open_storage(config.workspace_uri, config.storage), stats


def digests(storage):
    """Of all tables but the rejected rows, which say what file they come from."""
    return {name: read_manifest(storage.at(name)).digest for name in STEP.outputs if name != "rejected"}


def rejects(storage):
    return sorted(map(str, read_table(storage.at("rejected")).select(["source", "reason", "row"]).to_pylist()))


def test_a_tiny_log_from_json_lines(tmp_path):
    rows = [
        {"user_id": "ann", "asin": "b", "timestamp": 1_500_000_300},
        {"user_id": "ann", "asin": "a", "timestamp": 1_500_000_100},
        {"user_id": "ann", "asin": "c", "timestamp": 1_500_000_200},
        {"user_id": "ann", "asin": "c", "timestamp": 1_500_000_200},
        {"user_id": "bob", "asin": "c", "timestamp": 1_500_000_000},
        {"user_id": "bob", "asin": "x", "timestamp": 1_500_000_000},
    ]
    shop = [{"asin": name, "title": f"<b>{name}</b>", "description": ["One.", "Two."]} for name in "cbad"]
    log_path = write_jsonl(tmp_path / "in" / "log.json.gz", rows, '{"user_id": "bo', "[]")
    shop_path = write_jsonl(tmp_path / "in" / "shop.jsonl", shop)
    config = config_of(tmp_path / "runs", log_path, shop_path, "jsonl", max_rejected_fraction=0.5)
    storage, stats = prepared(config)

    items = read_table(storage.at("items"))
    assert items.select(["item_id", "item_index", "title", "description"]).to_pylist() == [
        {"item_id": name, "item_index": number, "title": name, "description": "One. Two."}
        for number, name in enumerate("abcd", 1)
    ]
    assert items.select(["popularity", "interactions"]).to_pydict() == {
        "popularity": [1, 0, 1, 0],
        "interactions": [1, 1, 2, 0],
    }
    assert read_manifest(storage.at("sequences")).stats["items"] == 3, "as in Table 2"
    sequences = {row["user_id"]: row for row in read_table(storage.at("sequences")).to_pylist()}
    assert sequences["ann"]["item_index"] == [1, 3, 2]
    assert [stamp.timestamp() - 1_500_000_000 for stamp in sequences["ann"]["timestamp"]] == [100, 200, 300]
    assert sequences["bob"]["item_index"] == [3]
    rejected = read_table(storage.at("rejected")).sort_by([("reason", "ascending"), ("number", "ascending")])
    duplicate = '{"user_id":"ann","item_id":"c","timestamp":"2017-07-14T02:43:20+00:00"}'
    assert rejected.to_pylist() == [
        {"source": "interactions", "reason": reason, "row": row, "file": file, "from_byte": start, "number": number}
        for reason, row, file, start, number in [
            ("duplicate_event", duplicate, None, None, None),
            ("malformed", '{"user_id": "bo', str(log_path), 0, 7),
            ("malformed", "[]", str(log_path), 0, 8),
            ("unknown_item", '{"user_id":"bob","item_id":"x","timestamp":"1500000000"}', str(log_path), 0, 6),
        ]
    ]
    cases = read_table(storage.at("evaluation_cases")).to_pylist()
    assert [(case["user_id"], case["target"]) for case in cases] == [("ann", 3), ("ann", 2)]
    assert stats["done"] | {"seconds": 0, "rows/s": 0} == {
        "verb": "prepare",
        "seconds": 0,
        "rows": 8,
        "rejected as duplicate_event": 1,
        "rejected as malformed": 2,
        "rejected as unknown_item": 1,
        "rejected items": 0,
        "users": 2,
        "items": 3,
        "items of the catalogue": 4,
        "interactions": 4,
        "items with training interactions": 2,
        "interactions per user": 2.0,
        "evaluation cases": 2,
        "rows/s": 0,
    }


@pytest.mark.on_ray
def test_files_rows_and_blocks_may_come_in_any_way(tmp_path, monkeypatch):
    rows, random = log(), np.random.default_rng(1)
    one = config_of(
        tmp_path / "one",
        write_parquet(tmp_path / "in" / "log.parquet", rows),
        write_parquet(tmp_path / "in" / "shop.parquet", SHOP),
    )
    whole, _ = prepared(one)
    parts = np.array_split(random.permutation(len(rows)), 4)
    for name, part in zip("dacb", parts, strict=True):
        write_parquet(tmp_path / "many" / f"{name}.parquet", [rows[row] for row in part], row_group_size=17)
    write_parquet(tmp_path / "shop" / "b.parquet", SHOP[::-1], row_group_size=7)
    monkeypatch.setattr(readers, "ROWS", 40)
    monkeypatch.setattr(histories, "Shuffle", partial(Shuffle, max_fan_in=2))  # two rounds of merging
    many, _ = prepared(config_of(tmp_path / "two", tmp_path / "many", tmp_path / "shop"))
    assert digests(many) == digests(whole)
    assert not list(many.list("drafts/"))
    assert rejects(many) == rejects(whole)

    # And what was written is what it should be.
    shards = read_manifest(whole.at("sequences")).files
    assert len(shards) == 5
    events = {(row["user_id"], row["asin"], row["timestamp"]) for row in rows[:600]}
    item_ids = read_table(whole.at("items")).column("item_id").to_pylist()
    found = set()
    for shard in range(5):
        table = read_table(whole.at("sequences"), [shard])
        users = table.column("user_id").to_pylist()
        assert users == sorted(users)
        assert set(shard_of(table.column("user_id"), 5)) <= {shard}
        for row in table.to_pylist():
            times = [stamp.timestamp() for stamp in row["timestamp"]]
            assert times == sorted(times)
            found |= {(row["user_id"], item_ids[i - 1], t) for i, t in zip(row["item_index"], times, strict=True)}
    assert found == events
    train = Sequences.read_train(whole.at("sequences"))
    popularity = read_table(whole.at("items")).column("popularity").to_pylist()
    assert popularity == np.bincount(train.items, minlength=31)[1:].tolist()


def test_too_many_rejects_stop_the_job_before_anything_else_is_written(tmp_path):
    log_path = write_parquet(tmp_path / "log.parquet", log())
    shop_path = write_parquet(tmp_path / "shop.parquet", SHOP)
    storage, _ = prepared(config_of(tmp_path / "runs", log_path, shop_path))
    before = digests(storage)
    rejected = read_manifest(storage.at("rejected")).rows
    strict = config_of(tmp_path / "runs", log_path, shop_path, max_rejected_fraction=0.01)
    with pytest.raises(ValueError, match=f"interactions: {rejected} of 664 rows were rejected") as error:
        prepared(strict)
    assert "duplicate_event" in str(error.value) and storage.at("rejected").uri in str(error.value)
    assert digests(storage) == before  # the good tables of the run before are still there

    fresh = config_of(tmp_path / "fresh", log_path, shop_path, max_rejected_fraction=0.01)
    with pytest.raises(ValueError, match="rejected"):
        prepared(fresh)
    storage = open_storage(fresh.workspace_uri)
    assert {entry.key.split("/")[0] for entry in storage.list()} == {"rejected"}
    assert read_manifest(storage.at("rejected")).rows == rejected


@pytest.mark.parametrize("before", [True, False], ids=["after a good one", "at first"])
def test_what_was_refused_leaves_no_item_known(tmp_path, before):
    """A wrong catalogue: none of its ids may stay in the way of the right ones."""
    log_path = write_parquet(tmp_path / "log.parquet", log())
    right = write_parquet(tmp_path / "shop.parquet", SHOP)
    wrong = write_parquet(tmp_path / "wrong.parquet", [{**item, "asin": f"SKU-{item['asin']}"} for item in SHOP * 2])
    if before:
        prepared(config_of(tmp_path / "runs", log_path, right))
    made = {path.name for path in tmp_path.glob("runs/test/histories/*")}
    with pytest.raises(ValueError, match="items: 30 of 60 rows were rejected"):
        prepared(config_of(tmp_path / "runs", log_path, wrong))
    assert {path.name for path in tmp_path.glob("runs/test/histories/*")} == made, "nor does its work take room"
    storage, stats = prepared(config_of(tmp_path / "runs", log_path, right))
    assert digests(storage) == digests(prepared(config_of(tmp_path / "undisturbed", log_path, right))[0])
    assert "items that have left the catalogue" not in stats["done"]


def test_a_failure_before_the_input_is_accepted_keeps_the_histories(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("the disk is full")

    shop_path = write_parquet(tmp_path / "shop.parquet", SHOP)
    config = config_of(tmp_path / "runs", tmp_path / "log", shop_path)
    write_parquet(tmp_path / "log" / "a.parquet", log())
    storage, _ = prepared(config)
    before = read_manifest(storage.at("histories"))
    write_parquet(tmp_path / "log" / "b.parquet", log(seed=1))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is full"):
        patch.setattr(prepare, "merge_catalogue", fail)
        prepared(config)
    assert read_manifest(storage.at("histories")) == before
    prepared(config)
    assert digests(storage) == digests(prepared(config_of(tmp_path / "whole", tmp_path / "log", shop_path))[0])


def test_a_log_without_an_event_that_counts_leaves_no_item_known(tmp_path):
    """A catalogue of other items, whatever fraction may be rejected."""
    shop_path = write_parquet(tmp_path / "shop.parquet", [{"asin": "x", "title": "X"}])
    log_path = write_parquet(tmp_path / "log.parquet", log(20))
    config = config_of(tmp_path / "runs", log_path, shop_path, max_rejected_fraction=1)
    with pytest.raises(ValueError, match=r"none of 26 rows is left \(unknown_item 23.*see data.start"):
        prepared(config)
    assert find_manifest(open_storage(config.workspace_uri).at("histories")) is None


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"min_user_interactions": 500}, "no user is left by data.min_user_interactions = 500; lower"),
        (
            {"min_item_interactions": 500, "min_user_interactions": 2, "k_core": True},
            r"by data.min_user_interactions = 2 and data.min_item_interactions = 500 \(data.k_core.*lower",
        ),
        ({"start": "2030-01-01"}, r"none of \d+ rows is left \(outside_window 661"),
    ],
)
def test_filters_that_leave_no_user_are_refused_before_a_table_is_replaced(tmp_path, filters, message):
    paths = write_parquet(tmp_path / "log.parquet", log()), write_parquet(tmp_path / "shop.parquet", SHOP)
    storage, _ = prepared(config_of(tmp_path / "runs", *paths))
    before = digests(storage)
    with pytest.raises(ValueError, match=message):
        prepared(config_of(tmp_path / "runs", *paths, **filters))
    assert digests(storage) == before
    assert read_table(storage.at("sequences")).num_rows


def test_a_catalogue_full_of_duplicates_stops_the_job(tmp_path):
    log_path = write_parquet(tmp_path / "log.parquet", log())
    shop_path = write_parquet(tmp_path / "shop.parquet", SHOP * 2)
    with pytest.raises(ValueError, match=r"items: 30 of 60 rows were rejected \(duplicate_item 30\)"):
        prepared(config_of(tmp_path / "runs", log_path, shop_path))


def test_thresholds_and_ratings(tmp_path):
    rows = log()
    log_path = write_parquet(tmp_path / "log.parquet", rows)
    shop_path = write_parquet(tmp_path / "shop.parquet", SHOP)
    config = config_of(
        tmp_path / "runs", log_path, shop_path, min_rating=3, min_item_interactions=20, min_user_interactions=6
    )
    storage, stats = prepared(config)
    good = {(row["user_id"], row["asin"], row["timestamp"]) for row in rows[:600] if row["rating"] >= 3}
    items = [item for _, item, _ in good]
    users = [user for user, _, _ in good]
    expected = Counter(user for user, item, _ in good if items.count(item) >= 20 and users.count(user) >= 6)
    table = read_table(storage.at("sequences")).to_pylist()
    assert {row["user_id"]: len(row["item_index"]) for row in table} == expected
    assert 0 < len(expected) < 60
    low = sum(row["rating"] < 3 for row in rows[:661])  # also the one of an unknown item
    assert stats["done"]["left out as below_min_rating"] == low


@pytest.mark.on_ray
def test_on_s3_from_s3(tmp_path, s3, s3_uri):
    storage = open_storage(s3_uri, s3)
    storage.write("in/log/1.parquet", write_parquet(tmp_path / "log.parquet", log()).read_bytes())
    storage.write("in/shop.parquet", write_parquet(tmp_path / "shop.parquet", SHOP).read_bytes())
    config = config_of(f"{s3_uri}/runs", f"{s3_uri}/in/log", f"{s3_uri}/in/shop.parquet", storage=s3)
    written, _ = prepared(config)
    local, _ = prepared(config_of(tmp_path / "runs", tmp_path / "log.parquet", tmp_path / "shop.parquet"))
    assert digests(written) == digests(local)
    assert rejects(written) == rejects(local)
    assert not list(written.list("drafts/"))


def test_a_changed_log_runs_the_step_again(tmp_path):
    log_path = write_parquet(tmp_path / "log.parquet", log())
    config = config_of(tmp_path / "runs", log_path, write_parquet(tmp_path / "shop.parquet", SHOP))
    storage, stats = prepared(config)
    assert "done" in stats
    before = digests(storage)
    _, stats = prepared(config)
    assert "skip" in stats and "done" not in stats
    write_parquet(log_path, log(seed=5))
    _, stats = prepared(config)
    assert "done" in stats
    assert digests(storage) != before


def test_what_is_wrong_with_the_input_is_said_before_anything_is_written(tmp_path):
    log_path = write_parquet(tmp_path / "log.parquet", [{"user_id": "u", "asin": "i1"}])
    shop_path = write_parquet(tmp_path / "shop.parquet", SHOP)
    config = config_of(tmp_path / "runs", log_path, shop_path)
    with pytest.raises(ValueError, match=r"interactions: column 'timestamp' is missing in .*log\.parquet"):
        prepared(config)
    with pytest.raises(ValueError, match="column 'timestamp' is missing"):
        execute(STEP, config, Console(), dry_run=True)
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_a_dry_run_says_what_would_be_read_and_touches_nothing(tmp_path, capsys):
    config = config_of(
        tmp_path / "runs",
        write_parquet(tmp_path / "log.parquet", log()),
        write_parquet(tmp_path / "shop.parquet", SHOP),
    )
    execute(STEP, config, Console(log_json=True), dry_run=True)
    plan = json.loads(capsys.readouterr().out)
    assert (plan["interactions rows"], plan["items rows"], plan["shards"]) == (664, 30, 5)
    assert not (tmp_path / "runs").exists()
