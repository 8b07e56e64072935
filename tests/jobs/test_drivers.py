"""What grows with the items is for workers: the drivers of trainings and bundles read only what describes it."""

from collections.abc import Callable
from typing import Any

import pytest

from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import writing
from allmrec.core.storage import LocalStorage, Storage
from jobs import (
    baselines,
    bundle,
    train_alignment,
    train_baselines,
    train_cf,
    train_projection,
    train_recformer,
    train_tallrec,
    transfer,
)
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import Context, Step
from tests.jobs.in_process import TRAINERS

BASELINES = {"llm_srec": {"item_input": "joint"}, "tallrec": {}, "recformer": {"encoder": None}, "morec": {}}
TRAINED = {"files": {}, "curve": []}  # what a training's workers say
STEPS = (
    train_cf.STEP,
    train_alignment.STEP,
    train_projection.STEP,
    train_baselines.STEP,
    train_recformer.STEP,
    train_tallrec.STEP,
    baselines.step_of("morec"),
)


@pytest.fixture
def driver(tiny_workspace: tuple[Config, Storage], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a step without what its workers do, which its driver waits for; returns what that was."""
    config, storage = tiny_workspace
    read = LocalStorage.read
    with writing(storage.at("item_text_embeddings"), "item_text_embeddings", "by hand") as out:
        out.stats["encoder"] = "tiny"

    def described(self: LocalStorage, key: str) -> bytes:
        assert key.endswith(".json"), f"the driver reads {key}"
        return read(self, key)

    def run(step: Step, results: dict[str, Any], **sections: Any) -> list[str]:
        called = []

        def on_worker(function: Callable[..., Any], *arguments: Any) -> Any:
            called.append(function.__name__)
            return results.get(function.__name__)

        monkeypatch.setattr(LocalStorage, "read", described)
        for job in (*TRAINERS, bundle, transfer):
            monkeypatch.setattr(job, "on_worker", on_worker, raising=False)
            monkeypatch.setattr(job, "fit", lambda *arguments, **settings: dict(TRAINED), raising=False)
        named = Config(**config.model_dump(exclude_unset=True) | {"baselines": BASELINES} | sections)
        step.under(named).run(Context(named, named.workspace, Console(log_json=True), "by hand"))
        return called

    return run


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.verb)
def test_a_training(step: Step, driver: Callable[..., list[str]]) -> None:
    driver(step, {})


def test_a_bundle(driver: Callable[..., list[str]], tiny_workspace: tuple[Config, Storage]) -> None:
    version = latest_bundle(tiny_workspace[1])
    results = {"build_bundle": version, "refresh_bundle": version, "counts_of": {}}
    assert driver(bundle.STEP, results) == ["build_bundle", "counts_of"], "it is in use already"
    assert driver(bundle.REFRESH, results) == ["refresh_bundle", "promote", "counts_of"]


def test_models_of_another_run(driver: Callable[..., list[str]], tiny_workspace: tuple[Config, Storage]) -> None:
    split = {"kind": "cross-domain", "trained_in": tiny_workspace[0].workspace_uri}
    results = {"write_models": {name: {} for name in transfer.MODELS}}
    assert driver(transfer.STEP, results, evaluation={"split": split}) == ["write_models"]
