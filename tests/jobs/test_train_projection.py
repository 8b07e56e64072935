"""The verb `train-projection`: two workers of Ray Train under ZeRO-3; one dies and the result is the same."""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from allmrec.alignment.network import AlignmentNetwork, save_alignment
from allmrec.bundle.build import build_bundle
from allmrec.bundle.loading import load_bundle
from allmrec.cf.teacher import WEIGHTS as TEACHER
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.pretrained import model_identity
from allmrec.core.rows import whole
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors, write_tensors
from allmrec.data.trained_items import write_trained_items
from allmrec.llm.loading import LLMConfig, load_llm
from allmrec.projection.engine import gathered
from allmrec.projection.projectors import load_projectors
from allmrec.projection.training import ProjectionTraining
from jobs import bundle as bundle_job
from jobs import train_projection
from jobs.config import Config
from jobs.runtime.console import Console
from jobs.runtime.step import execute, resolved
from tests.evaluation.tiny import tiny_config, write_tiny_workspace
from tests.jobs import training_run

pytestmark = pytest.mark.e2e

undisturbed = train_projection.loop
STEPS, DIES_AT = 4, 3  # 120 users in batches of 35, of which workers have unequal shares


def digest(model: torch.nn.Module) -> str:
    """sha256 over the bytes of all weights, gathered from the workers where they are cut."""
    with gathered(model.parameters()):
        found = hashlib.sha256()
        for name, parameter in model.named_parameters():
            found.update(name.encode() + parameter.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def observed(settings: dict) -> dict:
    """The loop, recording what happens to the LLM and of each round; the last worker dies once if told to."""
    folder = Path(settings["sequences"].uri)
    notes: dict = {"losses": []}
    load, rounds, train_step = (
        train_projection.load_llm_with_placement,
        ProjectionTraining.rounds,
        ProjectionTraining.train_step,
    )

    def loading(*arguments):
        notes["llm"] = load(*arguments)
        notes["before"] = digest(notes["llm"])
        return notes["llm"]

    def noting_rounds(self: ProjectionTraining):
        notes["first"] = self.step
        for numbers in rounds(self):
            notes["losses"].append(numbers["loss"])
            yield numbers

    def noting_step(self: ProjectionTraining, *arguments):
        last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        if self.step == DIES_AT and last and (folder / "dies").exists():
            (folder / "dies").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        total = train_step(self, *arguments)
        notes["denormal"] = float(torch.tensor([1e-30]) * torch.tensor([1e-10]))
        model = self.engine.module
        notes["trained"] = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        notes["gradients of the LLM"] = sum(parameter.grad is not None for parameter in model.llm.parameters())
        notes["cut"] = {
            name: parameter.ds_tensor.numel() / parameter.ds_numel
            for name, parameter in model.llm.named_parameters()
            if parameter.ds_numel > 1000  # all matrices
        }
        return total

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_projection, "load_llm_with_placement", loading)
        patch.setattr(ProjectionTraining, "rounds", noting_rounds)
        patch.setattr(ProjectionTraining, "train_step", noting_step)
        stats = undisturbed(settings)
    notes["after"] = digest(notes.pop("llm"))
    if torch.distributed.get_rank() == 0:
        (folder / "notes.json").write_text(json.dumps(notes))
    return stats


@pytest.fixture(scope="module")
def models(tiny_llm, tiny_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llm"
    tiny_llm.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def prepared(root: Path, models: Path, num_workers: int) -> tuple[Config, Storage]:
    config = training_run.config(
        root,
        llm={"name": str(models), "placement": "sharded"},
        prompt={"max_history": 4},
        projection={
            "batch_size": 35,
            "tokens_per_pass": 800,
            "epochs": 1,
            "num_candidates": 4,
            "learning_rate": 0.003,
            "checkpoint_every_steps": 1,
        },
    )
    workers = config.workers.model_copy(update={"num_workers": num_workers})
    config = config.model_copy(update={"workers": workers})
    storage = training_run.prepare(config)
    training_run.write_teacher(config, storage)
    network = AlignmentNetwork(8, 6, 8)
    e_NJ, q_NJ = torch.randn(2, training_run.NUM_ITEMS + 1, 8)
    with writing(storage.at("alignment"), "alignment", "by hand") as out:
        out.add(save_alignment(storage.at("alignment"), network, e_NJ, q_NJ))
        out.add(write_trained_items(storage.at("alignment"), storage.at("items")))
    return config, storage


def slow(settings: dict) -> dict:
    """The loop, with time to kill it between its steps."""
    train_step = ProjectionTraining.train_step

    def slowly(self: ProjectionTraining, *arguments):
        time.sleep(1)
        return train_step(self, *arguments)

    ProjectionTraining.train_step = slowly
    return undisturbed(settings)


def trained(root: Path, models: Path, num_workers: int) -> tuple[Storage, dict]:
    return train_observed(*prepared(root, models, num_workers))


def train_observed(config: Config, storage: Storage, dies: bool = False) -> tuple[Storage, dict]:
    folder = Path(storage.at("sequences").uri)
    if dies:
        (folder / "dies").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_projection, "loop", observed)
        assert execute(train_projection.STEP, config, Console(log_json=True))
    assert not (folder / "dies").exists()
    return storage, json.loads((folder / "notes.json").read_text())


@pytest.fixture(scope="module")
def calm(models, tmp_path_factory) -> tuple[Storage, dict]:
    return trained(tmp_path_factory.mktemp("calm"), models, num_workers=2)


def test_the_frozen_llm_is_bit_identical_afterwards(calm, models):
    storage, notes = calm
    assert notes["before"] == notes["after"] == digest(load_llm(LLMConfig(name=str(models))))
    stats = read_manifest(storage.at("projectors")).stats
    assert stats["llm"] == model_identity(str(models), None), "nor is its folder touched"


def test_a_step_meets_no_denormals(calm):
    assert calm[1]["denormal"] == 0


def test_only_the_projectors_carry_gradients_and_the_llm_is_cut_in_two(calm):
    notes = calm[1]
    networks = [f"trained.{part}.{layer}" for part in ("user", "item") for layer in (0, 2)]
    assert sorted(notes["trained"]) == sorted(f"{name}.{kind}" for name in networks for kind in ("weight", "bias"))
    assert notes["gradients of the LLM"] == 0
    assert len(notes["cut"]) >= 14 and set(notes["cut"].values()) == {0.5}


def test_the_projectors_moved_and_can_be_read(calm):
    storage, notes = calm
    projectors = load_projectors(storage.at("projectors"))
    assert projectors.user(torch.randn(3, 8)).shape == projectors.item(torch.randn(3, 8)).shape == (3, 32)
    stats = read_manifest(storage.at("projectors")).stats
    assert len(notes["losses"]) == stats["steps"] == STEPS and notes["first"] == 0
    assert stats["prompts"] == training_run.NUM_USERS and stats["placement"] == "sharded"
    untrained = load_projectors(storage.at("projectors"), untrained=True).state_dict()
    assert all(not torch.equal(untrained[name], weight) for name, weight in projectors.state_dict().items())
    assert stats["history items dropped"] == stats["prompts with cut titles"] == 0
    assert not list(storage.at("checkpoints/train-projection").root.iterdir())


@pytest.mark.usefixtures("in_process")
def test_two_workers_train_what_one_with_the_joined_batch_trains(calm, models, tmp_path):
    storage, notes = trained(tmp_path, models, num_workers=1)
    assert notes["losses"][0] == pytest.approx(calm[1]["losses"][0], abs=1e-5)
    assert notes["losses"] == pytest.approx(calm[1]["losses"], abs=1e-4)
    together, alone = (load_projectors(place.at("projectors")).state_dict() for place in (calm[0], storage))
    for name, weight in together.items():
        torch.testing.assert_close(weight, alone[name], rtol=1e-3, atol=1e-4)


def test_a_killed_driver_and_then_a_killed_worker_of_fewer_change_nothing(calm, models, tmp_path):
    config, storage = prepared(tmp_path, models, num_workers=2)
    training_run.kill_a_driver(
        train_projection, slow, config, tmp_path, storage.at("checkpoints/train-projection").root
    )

    workers = config.workers.model_copy(update={"num_workers": 1})
    _, notes = train_observed(config.model_copy(update={"workers": workers}), storage, dies=True)
    assert 0 < notes["first"] < STEPS, "it resumed from a checkpoint"
    assert notes["losses"] == pytest.approx(calm[1]["losses"][notes["first"] :], abs=1e-4)
    shaken, undisturbed_run = (load_projectors(place.at("projectors")).state_dict() for place in (storage, calm[0]))
    for name, weight in undisturbed_run.items():
        torch.testing.assert_close(shaken[name], weight, rtol=1e-3, atol=1e-4)
    found, expected = (read_manifest(place.at("projectors")).stats for place in (storage, calm[0]))
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-4)
    assert found["frozen_checksum"] == expected["frozen_checksum"]
    assert found["best_hit@1"] == pytest.approx(expected["best_hit@1"], abs=1e-3)


def test_the_plan_counts_tokens_and_memory_and_touches_nothing(models, tmp_path, capsys):
    config, storage = prepared(tmp_path, models, num_workers=2)
    before = [entry.key for entry in storage.list()]
    execute(train_projection.STEP, config, Console(log_json=True), dry_run=True)
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["prompts"] == training_run.NUM_USERS and plan["steps"] == STEPS
    parameters = sum(parameter.numel() for parameter in load_llm(LLMConfig(name=str(models))).parameters())
    assert plan["llm_parameters"] == parameters
    assert 30 < plan["tokens_per_prompt"] < 200
    assert plan["tokens_per_epoch"] == pytest.approx(plan["tokens_per_prompt"] * plan["prompts"], rel=0.02)
    assert [entry.key for entry in storage.list()] == before


class Caught(Exception):
    """What F_I would have seen in training."""


@pytest.mark.parametrize("item_input", ["joint", "teacher", "random"])
def test_training_sees_every_item_as_a_bundle_shows_it(item_input, tiny_llm, tiny_tokenizer, tmp_path, monkeypatch):
    """Items with few interactions, and one that an external teacher would not know."""
    config = tiny_config(
        tmp_path,
        bundle={"min_interactions_for_cf": 5},
        projection={"item_input": item_input, "validation_users": 0},
        prompt={"max_title_tokens": None},
    )
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    manifest, weights = read_manifest(storage.at("teacher")), read_tensors(storage.at("teacher"), TEACHER)
    weights["items.weight"][7] = 0
    with writing(storage.at("teacher"), "teacher", "test", manifest.config) as out:
        out.add(write_tensors(storage.at("teacher"), TEACHER, weights))
        out.stats |= manifest.stats
        out.add(write_trained_items(storage.at("teacher"), storage.at("items")))

    def training(*arguments):
        raise Caught(arguments[5], arguments[6])

    monkeypatch.setattr(train_projection, "ProjectionTraining", training)
    for asks_ray in ("device", "resume"):
        monkeypatch.setattr(train_projection, asks_ray, lambda: None)
    inputs = (*train_projection.STEP.inputs, "projectors")
    sections = {name: getattr(config, name) for name in train_projection.SECTIONS}
    sections["llm"] = config.llm.model_copy(update={"placement": "replicated"})
    with pytest.raises(Caught) as caught:
        undisturbed({**sections, "seed": config.seed, **{name: storage.at(name) for name in inputs}})
    torch.set_flush_denormal(False)
    assert "bundle" in train_projection.STEP.sections, "which trains again when the rule changes"
    inputs_NJ, uses_text_N = caught.value.args
    bundle = load_bundle(storage, build_bundle(storage, resolved(config, bundle_job.SECTIONS)))
    assert torch.equal(whole(inputs_NJ), whole(bundle.item_inputs())) and torch.equal(
        uses_text_N, bundle.uses_text_embedding()
    )
    assert uses_text_N.sum() == 7, "padding, five with few interactions and the unknown one"
    if item_input == "joint":
        assert torch.equal(whole(inputs_NJ)[uses_text_N], whole(bundle.q_NJ)[uses_text_N])


def test_an_llm_that_is_not_there_is_named(models, tmp_path):
    config, _ = prepared(tmp_path, models, num_workers=2)
    config = config.model_copy(update={"llm": LLMConfig(name=str(tmp_path / "nowhere"))})
    with pytest.raises(ValueError, match="nowhere"):
        execute(train_projection.STEP, config, Console(log_json=True), dry_run=True)
