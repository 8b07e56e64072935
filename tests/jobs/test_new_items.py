"""A trained deployment takes new users and new items as it goes, by the verbs: nothing is trained again."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from allmrec.bundle.versions import latest_bundle, promote
from allmrec.core.artifacts import read_table
from allmrec.publishing.reader import read_recommendations
from jobs import bundle, evaluate
from jobs.config import Config
from jobs.nightly import nightly
from jobs.pipeline import TRAINING
from jobs.runtime.console import Console
from jobs.runtime.step import execute, load_step
from tests.jobs.test_prepare import SHOP, config_of, log, write_parquet
from tests.jobs.test_upgrade import upgrade
from tests.text.tiny import build_tiny_sbert

DATE, QUIET = date(2026, 11, 20), Console(log_json=True)
REFRESH = ("jobs.prepare", "jobs.embed", "jobs.bundle:REFRESH")

pytestmark = pytest.mark.usefixtures("in_process")


def deployment(root: Path, tiny_llm: Any, tiny_tokenizer: Any) -> Config:
    tiny_llm.save_pretrained(root / "llm")
    tiny_tokenizer.save_pretrained(root / "llm")
    build_tiny_sbert([f"Item & {number} One. Two. Moonfall" for number in range(30)], root / "sbert")
    settings = config_of(root, root / "log", root / "shop.parquet").model_dump(mode="json", exclude_defaults=True)
    settings["evaluation"] |= {"max_users": 10, "systems": ["teacher", "a-llmrec"]}
    return Config(
        **settings,
        text={"model": str(root / "sbert")},
        llm={"name": str(root / "llm"), "placement": "replicated"},
        teacher={"dim": 8, "epochs": 1, "max_history": 6},
        alignment={"joint_dim": 6, "epochs": 1},
        projection={"epochs": 1, "num_candidates": 4, "batch_size": 32, "validation_users": 0},
        prompt={"max_history": 3},
        nightly={"num_candidates": 8, "top_k": 5},
        workers={"num_workers": 1},
    )


def lists(config: Config, day: date) -> dict[str, list[str]]:
    rows = read_recommendations(config.workspace.recommendations.uri, day).to_pylist()
    assert {row["source"] for row in rows} == {"llm"}
    return {row["user_id"]: [item["item_id"] for item in row["items"]] for row in rows}


def test_new_items_and_users_without_training(
    tmp_path: Path, tiny_llm: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = write_parquet(tmp_path / "shop.parquet", SHOP)
    write_parquet(tmp_path / "log" / "1.parquet", log(300))
    config = deployment(tmp_path, tiny_llm, tiny_tokenizer)
    steps = [load_step(f"jobs.{verb}") for verb in TRAINING]
    assert all([execute(step, config, QUIET) for step in steps])
    nightly(config, QUIET, DATE)
    old, before = latest_bundle(config.workspace.storage), lists(config, DATE)
    upgrade(monkeypatch)
    assert not any([execute(step, config, QUIET) for step in steps]), "a patch release makes nothing again"

    # An item comes that is the first by its id, another one goes; a new user has had the new one.
    write_parquet(shop, [{"asin": "a-new-one", "title": "Moonfall", "description": ["Two."]}, *SHOP[1:]])
    day = [{"user_id": user, "asin": item, "timestamp": 1_590_000_000, "rating": 5.0} for user, item in NEW_EVENTS]
    write_parquet(tmp_path / "log" / "2.parquet", day)
    assert all([execute(load_step(name), config, QUIET) for name in REFRESH])
    built = latest_bundle(config.workspace.storage)
    nightly(config, QUIET, DATE + timedelta(days=1))
    after = lists(config, DATE + timedelta(days=1))
    assert {*after} == {*before, "u-new"} and built != old
    assert any("a-new-one" in items for items in after.values()), "the same night"
    assert "a-new-one" not in after["u-new"] and not any("i0" in items for items in after.values())
    items = {row["item_id"]: row for row in read_table(config.workspace.items).to_pylist()}
    assert items["i0"]["title"] == "Item & 0" and items["i0"]["available"] is False
    assert not any([execute(load_step(name), config, QUIET) for name in REFRESH]), "there is nothing to do"
    assert execute(evaluate.STEP, config, QUIET), "on the cases of now"

    # Going back, after the preparation: the bundle of before has no new item.
    promote(config.workspace.storage, old)
    nightly(config, QUIET, DATE + timedelta(days=2))
    back = lists(config, DATE + timedelta(days=2))
    assert {*back} == {*after} and not any({"a-new-one", "i0"} & {*items} for items in back.values())
    assert execute(bundle.REFRESH, config, QUIET) and latest_bundle(config.workspace.storage) == built


NEW_EVENTS = [("u-new", "a-new-one"), ("u-new", "i5"), ("u1", "a-new-one"), ("u2", "i7")]
