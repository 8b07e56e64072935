"""`allmrec daily`, night after night: what has changed is done, what has not is skipped, whatever happened before."""

from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import pyiceberg.catalog
import pytest
from pyiceberg.utils.config import Config as IcebergSettings

from allmrec.bundle.description import read_description
from allmrec.bundle.versions import bundle_versions, latest_bundle
from allmrec.core.commit_log import entries_after
from allmrec.publishing.lease import hold
from allmrec.publishing.log import published_dates
from allmrec.publishing.reader import read_recommendations
from jobs.daily import LEASE
from tests.evaluation.tiny import NUM_ITEMS
from tests.jobs.deployment import FIRST, Deployment, GrowingShop, events, failure, ran

pytestmark = pytest.mark.usefixtures("in_process")
STEPS = ("prepare", "embed", "bundle", "nightly")
DAYS = [FIRST + timedelta(number) for number in range(4)]


@pytest.fixture
def shop(tmp_path) -> GrowingShop:
    shop = GrowingShop(tmp_path)
    shop.write_day(0)
    return shop


@pytest.fixture
def deployment(shop: GrowingShop, tiny_llm, tiny_tokenizer) -> Deployment:
    return Deployment.create(shop, "shop", tiny_llm, tiny_tokenizer)


def test_one_command_does_all_that_is_needed(shop: GrowingShop, deployment: Deployment) -> None:
    plan = events(deployment.daily(DAYS[0], "--dry-run"))
    assert [one["verb"] for one in plan] == [*STEPS], "what each step would do"
    assert not list(deployment.output.list()), "a dry run touches nothing"
    assert ran(deployment.daily(DAYS[0])) == dict.fromkeys(STEPS, True)
    assert ran(deployment.daily(DAYS[0])) == {"daily": False}, "published already"
    shop.write_day(1)
    assert ran(deployment.daily(DAYS[0])) == {"daily": False}, "also when the log has grown since"
    assert ran(deployment.daily(DAYS[1]))["prepare"]
    assert published_dates(deployment.output) == DAYS[:2]
    unchanged = ran(deployment.daily(DAYS[2]))
    assert unchanged == {"prepare": False, "embed": False, "bundle refresh": False, "nightly": True}
    rows = read_recommendations(deployment.output.uri)
    assert set(rows.column("run_date").to_pylist()) == {DAYS[2]} and rows.num_rows > shop.users / 2


def test_a_date_that_failed_is_continued_by_the_same_command(shop: GrowingShop, deployment: Deployment) -> None:
    deployment.daily(DAYS[0])
    failed = deployment.daily(DAYS[1], nightly__quality_gates={"min_coverage": 1.0})
    assert "nothing is published: coverage is" in failure(failed)
    refused = deployment.call("nightly", "--date", str(DAYS[1]), nightly__top_k=4)
    assert "nightly.top_k was 5 and is 4. Replace" in failure(refused)
    shop.write_day(1)  # what was begun can never be finished: its sequences are gone
    assert ran(deployment.daily(DAYS[1], nightly__top_k=4))["nightly"]
    assert published_dates(deployment.output) == DAYS[:2]
    assert [entry["n"] for entry in entries_after(deployment.output, 0)] == [1, 2]


def test_one_process_at_a_time_prepares_a_workspace(deployment: Deployment) -> None:
    with hold(deployment.config.workspace.storage.at(LEASE), 0.3):
        held = deployment.daily(DAYS[0])
    assert "is being made by process" in failure(held)
    assert not list(deployment.output.list())


def test_a_published_date_is_made_again_only_where_asked(shop: GrowingShop, deployment: Deployment) -> None:
    deployment.daily(DAYS[0], nightly__top_k=3)
    assert ran(deployment.daily(DAYS[0])) == {"daily": False}
    assert ran(deployment.daily(DAYS[0], "--replace"))["nightly"]
    assert not ran(deployment.daily(DAYS[0], "--replace"))["nightly"], "a retry does nothing"
    dates = [entry["run_date"] for entry in entries_after(deployment.output, 0)]
    assert dates == [str(DAYS[0])] * 2, "both stay in the log"
    lists = read_recommendations(deployment.output.uri, DAYS[0]).column("items").to_pylist()
    assert {len(items) for items in lists} == {5}


def test_a_replacement_that_the_preflight_refuses_leaves_the_date_as_it_is(deployment: Deployment) -> None:
    events(deployment.daily(DAYS[0], nightly__top_k=3))
    before = {entry.key: deployment.output.read(entry.key) for entry in deployment.output.list()}
    replace = ("nightly", "--date", str(DAYS[0]), "--replace")
    assert "this machine has 0" in failure(deployment.call(*replace, workers__gpus_per_worker=1))
    assert {entry.key: deployment.output.read(entry.key) for entry in deployment.output.list()} == before
    assert ran(deployment.call(*replace)) == {"nightly": True}


def test_the_models_in_use_take_new_items_until_others_are_promoted(shop: GrowingShop, deployment: Deployment) -> None:
    storage = deployment.config.workspace.storage
    deployment.daily(DAYS[0])
    first = latest_bundle(storage)
    assert deployment.call("bundle", "build", prompt__noun="thing").exit_code == 0
    assert latest_bundle(storage) != first and deployment.call("bundle", "promote", first).exit_code == 0
    shop.write_items(new=2)
    assert ran(deployment.daily(DAYS[1], prompt__noun="thing"))["bundle refresh"]
    third = latest_bundle(storage)
    assert len({first, third, *bundle_versions(storage)}) == 3
    assert read_description(storage, third)["config"] == read_description(storage, first)["config"]
    rows = read_recommendations(deployment.output.uri, DAYS[1])
    assert set(rows.column("bundle").to_pylist()) == {third}
    recommended = {item["item_id"] for items in rows.column("items").to_pylist() for item in items}
    assert recommended & {f"item-{NUM_ITEMS}", f"item-{NUM_ITEMS + 1}"}, "in the same run"


def test_a_range_of_dates_is_filled_in_order(shop: GrowingShop, deployment: Deployment) -> None:
    for number in (1, 2, 3):
        shop.write_day(number)
    deployment.daily(DAYS[3])
    assert deployment.call("nightly", "--date", str(DAYS[1])).exit_code == 0
    done = events(deployment.call("nightly", "--from", str(DAYS[0]), "--to", str(DAYS[3])))
    skipped = [one["why"] for one in done if one["event"] == "skip"]
    assert [why[:10] for why in skipped] == [str(DAYS[1]), str(DAYS[3])]
    assert [one["users"] for one in done if one["event"] == "done"] == [
        read_recommendations(deployment.output.uri, day).num_rows for day in (DAYS[0], DAYS[2])
    ], "each knows the log up to its date"
    third = next(one for one in reversed(done) if one["event"] == "done")
    assert third["reused"] > 0, "from the date before"
    assert published_dates(deployment.output) == DAYS
    assert set(read_recommendations(deployment.output.uri).column("run_date").to_pylist()) == {DAYS[3]}
    for options, message in (
        (("--to", "2026-11-02"), "give --from as well"),
        (("--from", "2026-11-02", "--date", "2026-11-02"), "give one of them"),
        (("--from", "2026-11-02", "--to", "2026-11-01"), "give the earlier date first"),
    ):
        assert message in failure(deployment.call("nightly", *options))


def test_the_iceberg_table_follows_what_is_published(
    shop: GrowingShop, deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{name.upper()}", value)
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", IcebergSettings())  # which a process reads once
    follow = {"nightly__iceberg": {"catalog": "lake", "table": "shop.recommendations"}}

    def listed() -> dict[date, int]:
        table = pyiceberg.catalog.load_catalog("lake", **settings).load_table("shop.recommendations")
        return Counter(table.scan().to_arrow().column("run_date").to_pylist())

    rows = {}
    for day in DAYS[:2]:
        events(deployment.daily(day))
        rows[day] = read_recommendations(deployment.output.uri, day).num_rows
    assert ran(deployment.daily(DAYS[1], **follow)) == {"daily": False}
    assert listed() == rows, "also what was published before there was a table"
    gone = read_recommendations(deployment.output.uri, DAYS[0]).column("user_id")[0].as_py()
    (tmp_path / "gone.txt").write_text(f"{gone}\n")
    events(deployment.call("recommendations", "suppress", "--users", str(tmp_path / "gone.txt"), **follow))
    assert listed() == {day: count - 1 for day, count in rows.items()}
    events(deployment.daily(DAYS[2], **follow, retention__runs=2))
    assert [*sorted(listed())] == DAYS[1:3], "the oldest one has expired"
