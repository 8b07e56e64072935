"""What may be deleted and what must stay: bundles that runs need, texts in use, checkpoints that may be resumed."""

import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from allmrec.alignment.tuned_encoder import DIGEST
from allmrec.core import machine_cache
from allmrec.core.artifacts import commit, shard_name, write_shard
from allmrec.core.commit_log import append_next, dump_json
from allmrec.core.pretrained import COPIES
from allmrec.core.storage import LocalStorage, Storage, open_storage
from allmrec.core.workspace import Workspace
from allmrec.publishing.log import roll_back
from allmrec.publishing.run import Run
from allmrec.retention import (
    delete_bundle,
    delete_checkpoints,
    delete_encoder,
    expired_bundles,
    named_encoders,
    needed_bundles,
    old_checkpoints,
    unused_encoders,
    unused_texts,
)
from allmrec.text.cache import TextCache
from schemas import items
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_replace import replaced
from tests.publishing.test_run import NEXT_DAY, nightly

HOUR = 3600


@pytest.fixture
def shop() -> Shop:
    return Shop()


def add_bundle(workspace: Workspace, version: str, promoted: bool = True) -> None:
    workspace.bundles.write(f"{version}/items/part-00000.parquet", b"rows")
    workspace.bundles.write(f"{version}/bundle.json", b"{}")
    if promoted:
        append_next(workspace.bundles, {"version": version})


def test_bundles_stay_that_are_new_or_that_a_run_needs(storage: Storage) -> None:
    workspace = Workspace(storage)
    for version in ("a", "b", "c", "d", "e"):
        add_bundle(workspace, version)
    add_bundle(workspace, "about to be promoted", promoted=False)
    append_next(workspace.bundles, {"version": "b"})  # back to an older one, which is in use now
    assert expired_bundles(workspace, 2, ["d"]) == ["a", "c"], "b and e are the newest, d is needed"
    workspace.bundle.write("bundle.json", dump_json({"version": "c"}))
    assert expired_bundles(workspace, 2, ["d"]) == ["a"], "c is what was built last"
    delete_bundle(workspace, "a")
    assert expired_bundles(workspace, 2, ["d"]) == []
    assert not list(workspace.bundles.list("a/"))


def test_what_a_killed_build_left_goes_after_a_day(tmp_path: Path) -> None:
    workspace = Workspace(LocalStorage(tmp_path))
    for name, hours in (("old", 25), ("building", 23)):
        workspace.bundles.write(f"{name}/items/part-00000.parquet", b"rows")
        os.utime(tmp_path / f"bundles/{name}/items/part-00000.parquet", (time.time() - hours * HOUR,) * 2)
    assert expired_bundles(workspace, 1, []) == ["old"]


def test_a_run_that_stays_keeps_its_bundle_and_so_does_one_that_was_begun(storage: Storage, shop: Shop) -> None:
    nightly(storage, shop, DAY, lease_s=0.2)  # by bundle v1
    assert needed_bundles(storage, 1) == {"v1"}
    replaced(storage, shop, {"bundle": "v2"}, NEXT_DAY)
    assert needed_bundles(storage, 1) == {"v2"} and needed_bundles(storage, None) == {"v1", "v2"}
    Run.open(storage, NEXT_DAY.replace(day=3), {"bundle": "v3"})
    assert needed_bundles(storage, 1) == {"v2", "v3"}
    roll_back(storage, DAY)
    assert needed_bundles(storage, 1) == {"v1", "v2", "v3"}, "what is current stays"


def test_an_encoder_goes_that_neither_a_bundle_nor_an_artifact_names(tmp_path: Path) -> None:
    workspace = Workspace(LocalStorage(tmp_path))
    assert unused_encoders(workspace, []) == []
    for digest, hours in (("of a", 25), ("of b", 25), ("trained last", 25), ("left", 25), ("training", 23)):
        for name in ("manifest.json", "encoder/modules.json", "text_embeddings/manifest.json"):
            workspace.encoders.write(f"{digest}/{name}", b"{}")
            os.utime(tmp_path / f"encoders/{digest}/{name}", (time.time() - hours * HOUR,) * 2)
    for version in ("a", "b"):
        add_bundle(workspace, version)
        alignment = workspace.bundles.at(version).at("alignment")
        commit(alignment, "alignment", "-", {}, stats={DIGEST: f"of {version}", "encoder": f"by {version}"})
    commit(workspace.fine_tuned, "fine_tuned", "-", {}, stats={DIGEST: "trained last"})
    assert named_encoders(workspace) == {"of a": "by a", "of b": "by b", "trained last": None}
    assert unused_encoders(workspace, []) == ["left"] and unused_encoders(workspace, ["a"]) == ["left", "of a"]
    delete_bundle(workspace, "a")
    for digest in unused_encoders(workspace, []):
        delete_encoder(workspace, digest)
    left = {entry.key.split("/")[0] for entry in workspace.encoders.list()}
    assert left == {"of b", "trained last", "training"} and unused_encoders(workspace, []) == []


def test_files_that_another_tool_put_beside_the_folders_stay(tmp_path: Path) -> None:
    workspace = Workspace(LocalStorage(tmp_path))
    for name in ("bundles/.DS_Store", "encoders/.DS_Store", "checkpoints/.DS_Store", "checkpoints/train-cf/.DS_Store"):
        workspace.storage.write(name, b"")
        os.utime(tmp_path / name, (0, 0))
    assert expired_bundles(workspace, 1, []) == unused_encoders(workspace, []) == old_checkpoints(workspace, 7) == []


def test_texts_stay_that_an_item_has_by_an_encoder_in_use(storage: Storage) -> None:
    workspace, one = Workspace(storage), pa.FixedSizeListArray.from_arrays(pa.array([1.0]), 1)
    caches = {encoder: TextCache.of(storage, encoder) for encoder in ("used", "configured", "former")}
    files = {
        (encoder, text): cache.write(pa.array([text]), one) for encoder, cache in caches.items() for text in ("x", "y")
    }
    assert unused_texts(workspace, "configured") == [], "before anything is prepared"
    row = {"item_id": "i", "title": "t", "item_index": 1, "popularity": 0, "interactions": 0, "text_hash": "x"}
    table = pa.Table.from_pylist([row], items.SCHEMA)
    commit(
        workspace.items, "items", "-", {shard_name(0): write_shard(workspace.items, items.SCHEMA, shard_name(0), table)}
    )
    commit(workspace.item_text_embeddings, "item_text_embeddings", "-", {}, stats={"encoder": "used"})
    unused = unused_texts(workspace, "configured")
    gone = [("used", "y"), ("configured", "y"), ("former", "x"), ("former", "y")]
    assert {workspace.text_cache.name(key) for key in unused} == {
        caches[one].storage.name(files[one, text]) for one, text in gone
    }


def test_checkpoints_go_that_were_not_resumed(tmp_path: Path) -> None:
    workspace = Workspace(open_storage(str(tmp_path)))
    assert old_checkpoints(workspace, 7) == []
    for folder, days in (("train-cf/old", 8), ("train-cf/new", 1), ("train-projection/old", 9)):
        for name in ("state.json", "deeper/shard"):
            workspace.checkpoints.write(f"{folder}/{name}", b"")
            os.utime(tmp_path / f"checkpoints/{folder}/{name}", (time.time() - days * 24 * HOUR,) * 2)
    (tmp_path / "checkpoints/train-projection/old/state.json").touch()  # written today
    assert old_checkpoints(workspace, 7) == ["train-cf/old"]
    delete_checkpoints(workspace, "train-cf/old")
    assert old_checkpoints(workspace, 7) == [] and not (tmp_path / "checkpoints/train-cf/old").exists()


def test_copies_of_models_go_that_were_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path)
    copies = tmp_path / COPIES
    for name, days in (("old", 31), ("used", 2)):
        (copies / name).mkdir(parents=True)
        (copies / name / "model.safetensors").touch()
        (copies / f"{name}.lock").touch()
        os.utime(copies / f"{name}.lock", (time.time() - days * 24 * HOUR,) * 2)
    assert machine_cache.unused_folders(COPIES, 30) == [copies / "old"]
    machine_cache.delete_unused(copies / "old", 32)
    assert (copies / "old").exists(), "it was used since it was listed"
    machine_cache.delete_unused(copies / "old", 30)
    assert machine_cache.unused_folders(COPIES, 30) == [] and (copies / "used/model.safetensors").exists()
