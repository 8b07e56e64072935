"""A training that its workers refuse writes nothing: the model of the training before is used on."""

from types import ModuleType
from typing import Any

import pytest

from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import find_manifest, is_intact, read_manifest, writing
from jobs import bundle, train_cf
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.jobs.in_process import TRAINERS

CONSOLE = Console(log_json=True)
BASELINES = {"llm_srec": {}, "tallrec": {}, "recformer": {"encoder": None}}

pytestmark = pytest.mark.usefixtures("in_process")


def refuse(settings: dict[str, Any]) -> None:
    raise ValueError("no user has two training interactions")


@pytest.mark.parametrize("job", TRAINERS, ids=lambda job: job.__name__)
def test_the_model_stays(job: ModuleType, tiny_workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, storage = tiny_workspace
    (artifact,) = job.STEP.outputs
    target = storage.at(artifact)
    for name in (artifact, *job.STEP.inputs):
        if find_manifest(storage.at(name)) is None:
            with writing(storage.at(name), name, "made before") as out:
                out.file("some", b"bytes")
    before = read_manifest(target)
    monkeypatch.setattr(job, "loop", refuse)
    named = Config(**config.model_dump(exclude_unset=True) | {"baselines": BASELINES})
    with pytest.raises(ValueError, match="two training interactions"):
        execute(job.STEP, named, CONSOLE, force=True)
    assert read_manifest(target) == before
    assert all(is_intact(target, name, entry) for name, entry in before.files.items())


def test_the_next_step_reads_it(tiny_workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, storage = tiny_workspace
    version = latest_bundle(storage)
    monkeypatch.setattr(train_cf, "loop", refuse)
    with pytest.raises(ValueError, match="two training interactions"):
        execute(train_cf.STEP, config, CONSOLE, force=True)
    assert execute(bundle.STEP, config, CONSOLE, force=True)
    assert latest_bundle(storage) == version
