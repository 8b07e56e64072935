"""`train-baselines`, and LLM-SRec in the bundle and in the evaluation; nothing of it where `baselines` names none."""

import datetime
import json

import numpy as np
import pytest
import torch

from allmrec.bundle.description import read_description
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import commit, read_manifest, read_table
from allmrec.core.rows import whole
from allmrec.core.tensor_files import read_tensors
from allmrec.model import ALLMRec
from jobs import bundle, evaluate, train_baselines
from jobs.config import Config
from jobs.pipeline import ordered, steps_of
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from tests.evaluation.tiny import NUM_ITEMS

pytestmark = pytest.mark.usefixtures("in_process")
CONSOLE = Console(log_json=True)
READOUT = {"dim": 8, "hidden": 16, "epochs": 2, "batch_size": 20, "learning_rate": 0.01, "validation_users": 30}


@pytest.fixture
def named(tiny_workspace) -> Config:
    config, _ = tiny_workspace
    return Config(**config.model_dump(exclude_unset=True) | {"baselines": {"llm_srec": READOUT}})


def metrics_of(storage, system: str) -> dict[tuple[str, ...], float]:
    rows = json.loads(storage.read("metrics.json"))
    return {(row["protocol"], row["subset"], row["metric"]): row["value"] for row in rows if row["system"] == system}


def test_llm_srec_is_trained_bundled_and_evaluated_beside_the_others(tiny_workspace, named, capsys):
    config, storage = tiny_workspace
    plain = latest_bundle(storage)
    execute(evaluate.STEP, config, CONSOLE)
    before = {system: metrics_of(storage, system) for system in config.evaluation.systems}

    execute(train_baselines.STEP, named, CONSOLE, dry_run=True)
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert planned["steps"] > 0 and planned["tokens_per_item"] < planned["tokens_per_user"]
    with pytest.raises(ValueError, match=r"llm-srec"):
        execute(bundle.STEP, named, CONSOLE)
    assert execute(train_baselines.STEP, named, CONSOLE)
    manifest = read_manifest(storage.at("systems/llm-srec"))
    assert manifest.stats["steps"] == 2 * -(-manifest.stats["users"] // 20)
    assert [row["users"] for row in manifest.stats["curve"]] == [manifest.stats["users"], 2 * manifest.stats["users"]]
    assert read_tensors(storage.at("systems/llm-srec"), "vectors.safetensors")["items"].shape == (NUM_ITEMS + 1, 8)
    assert not execute(train_baselines.STEP, named, CONSOLE), "nothing has changed"

    assert execute(bundle.STEP, named, CONSOLE)
    version = latest_bundle(storage)
    assert version != plain and set(load_bundle(storage, version).systems) == {"llm-srec"}
    assert execute(evaluate.STEP, named, CONSOLE)
    mine = metrics_of(storage, "llm-srec")
    assert {protocol for protocol, _, _ in mine} == {"random", "matched", "swap", "full"}
    assert mine["swap", "all", "ndcg@10"] != mine["random", "all", "ndcg@10"]
    assert {system: metrics_of(storage, system) for system in before} == before, "the others' figures stay"
    costs = read_table(storage.at("evaluation_results")).column("system").to_pylist()
    assert costs.count("llm-srec") == costs.count("teacher")

    assert execute(bundle.STEP, config, CONSOLE) and latest_bundle(storage) == plain, "without: to the byte as before"
    requested = Config(**named.model_dump(exclude_unset=True) | {"evaluation": {"systems": ["teacher", "llm-srec"]}})
    with pytest.raises(ValueError, match=rf"bundle {plain} has no llm-srec; name it in `baselines`"):
        execute(evaluate.STEP, requested, CONSOLE)


def test_a_bundle_takes_no_system_of_another_teacher_or_llm(tiny_workspace, named):
    _, storage = tiny_workspace
    execute(train_baselines.STEP, named, CONSOLE)
    part = storage.at("systems/llm-srec")
    manifest = read_manifest(part)
    for what in ("llm", "teacher"):
        stats = manifest.stats | {what: "another"}
        commit(part, manifest.kind, manifest.fingerprint, manifest.files, manifest.config, stats)
        with pytest.raises(ValueError, match=rf"trained with another {what} .* run train-baselines again"):
            execute(bundle.STEP, named, CONSOLE, force=True)


def test_soft_tokens_of_joint_embeddings_need_the_alignment_that_they_were_trained_with(tiny_workspace, named):
    _, storage = tiny_workspace
    joint = Config(
        **named.model_dump(exclude_unset=True) | {"baselines": {"llm_srec": READOUT | {"item_input": "joint"}}}
    )
    verbs = [step.verb for step in ordered(steps_of(joint, datetime.date(2026, 11, 29)))]
    assert verbs.index("train-alignment") < verbs.index("train-baselines") < verbs.index("bundle")
    assert execute(train_baselines.STEP, joint, CONSOLE)
    stats = read_manifest(storage.at("systems/llm-srec")).stats
    assert stats["alignment"] == read_manifest(storage.at("alignment")).digest
    assert execute(bundle.STEP, joint, CONSOLE)
    loaded = ALLMRec(load_bundle(storage, latest_bundle(storage)), joint.llm)
    torch.testing.assert_close(whole(loaded.llm_srec.items_NK), whole(loaded.bundle.joint_embeddings()))
    items = np.array([3, NUM_ITEMS])
    live = loaded.llm_srec.vectors_of(items)
    torch.testing.assert_close(loaded.llm_srec.item_embeddings[items], live, atol=1e-5, rtol=1e-4)

    fewer = Config(**joint.model_dump(exclude_unset=True) | {"bundle": {"min_interactions_for_cf": 5}})
    assert not execute(train_baselines.STEP, joint, CONSOLE)
    execute(train_baselines.STEP, fewer, CONSOLE)
    with pytest.raises(ValueError, match=r"another bundle.min_interactions_for_cf .*train-baselines again"):
        execute(bundle.STEP, joint, CONSOLE, force=True)


def test_a_config_without_baselines_knows_nothing_of_them(tiny_workspace):
    config, storage = tiny_workspace
    with pytest.raises(ValueError, match=r"names no system to train; set baselines: \{llm_srec: \{\}\}"):
        execute(train_baselines.STEP, config, CONSOLE)
    execute(bundle.STEP, config, CONSOLE)  # another test's may be in use
    description = read_description(storage, latest_bundle(storage))
    assert "systems" not in description and "baselines" not in description["config"]
    assert "train-baselines" not in [step.verb for step in steps_of(config, datetime.date(2026, 11, 29))]


def test_a_run_trains_what_is_named_before_the_bundle(named):
    verbs = [step.verb for step in ordered(steps_of(named, datetime.date(2026, 11, 29)))]
    assert verbs.index("train-cf") < verbs.index("train-baselines") < verbs.index("bundle")
