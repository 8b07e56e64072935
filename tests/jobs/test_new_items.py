"""A trained deployment takes new users and new items as it goes, by the verbs: nothing is trained again."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.alignment.network import load_network
from allmrec.alignment.tuned_encoder import DIGEST, former_embeddings
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle, promote
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.publishing.reader import read_recommendations
from allmrec.retention import delete_encoder, named_encoders, unused_texts
from allmrec.text.encoder import TextEncoder, encoder_identity
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


def deployment(root: Path, tiny_llm: Any, tiny_tokenizer: Any, **alignment: str) -> Config:
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
        alignment={"joint_dim": 6, "epochs": 1, **alignment},
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


def test_a_fine_tuned_encoder_embeds_what_is_new_whatever_was_trained_since(
    tmp_path: Path, tiny_llm: Any, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = write_parquet(tmp_path / "shop.parquet", SHOP)
    write_parquet(tmp_path / "log" / "1.parquet", log(200))
    config = deployment(tmp_path, tiny_llm, tiny_tokenizer, text_encoder="fine-tuned")
    workspace, storage = config.workspace, config.workspace.storage
    again = config.model_copy(update={"alignment": config.alignment.model_copy(update={"epochs": 2})})
    built, digests = [], []
    for trained in (config, again):
        for verb in TRAINING:
            execute(load_step(f"jobs.{verb}"), trained, QUIET)
        built.append(latest_bundle(storage))
        digests.append(read_manifest(workspace.alignment).stats[DIGEST])
    assert sorted(entry.key for entry in workspace.encoders.list() if entry.key.endswith("/encoder/modules.json")) == [
        f"{digest}/encoder/modules.json" for digest in sorted(digests)
    ], "each once, outside of the bundles"

    # Back to the first training, after the second one: a new item is shown as by the first.
    promote(storage, built[0])
    write_parquet(shop, [*SHOP, {"asin": "new", "title": "Moonfall", "description": ["Two."]}])
    for name in REFRESH:
        assert execute(load_step(name), again, QUIET)
    back = latest_bundle(storage)
    assert execute(bundle.STEP, again, QUIET)
    for version, digest in ((back, digests[0]), (latest_bundle(storage), digests[1])):
        loaded, models = load_bundle(storage, version), Workspace(workspace.bundles.at(version))
        (index,) = np.flatnonzero(loaded.new_N)
        text = pa.table({"text": [Catalogue.read(workspace.items, texts=True).texts[int(index)]]})
        encoders = {name: workspace.encoders.name(f"{name}/encoder") for name in digests}
        encoders["frozen"] = config.text.model
        for name, model in encoders.items():
            encoder = TextEncoder(config.text.model_copy(update={"model": model}))
            q_1J = load_network(models.alignment).encode_texts(torch.tensor(encoder(text)["embedding"].to_pylist()))
            assert torch.allclose(loaded.q_NJ[[index]], q_1J, atol=1e-5) == (name == digest), name
        assert read_manifest(models.alignment).stats[DIGEST] == digest
        bundle.verify(again, QUIET, version)
    assert {*named_encoders(workspace)} == {*digests} and not unused_texts(workspace, encoder_identity(config.text))
    embeddings = read_manifest(workspace.at(former_embeddings(digests[0])))
    assert embeddings.stats["embedded"] == 1, "the other texts are in the cache still"

    # Without its encoder a bundle serves on, and takes no new items.
    promote(storage, back)
    delete_encoder(workspace, digests[0])
    with pytest.raises(ValueError, match="the encoder of new items, is missing"):
        bundle.verify(again, QUIET, back)
    write_parquet(shop, [*SHOP, {"asin": "newer", "title": "Moonfall Again", "description": ["Two."]}])
    for name in REFRESH:
        assert execute(load_step(name), again, QUIET)
    assert f"bundle {back} stays, without the new items" in capsys.readouterr().out
    assert latest_bundle(storage) == back
    nightly(again, QUIET, DATE)
    assert not any({"newer"} & {*items} for items in lists(again, DATE).values())


NEW_EVENTS = [("u-new", "a-new-one"), ("u-new", "i5"), ("u1", "a-new-one"), ("u2", "i7")]
