"""TALLRec as a baseline: trained, bundled, evaluated and ranking at night; every other system's figures stay."""

import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle, promote
from allmrec.core.artifacts import commit, read_manifest, read_table
from allmrec.core.hashing import Draw, key64
from allmrec.data.cases import Cases
from allmrec.data.sequences import Sequences
from allmrec.evaluation.shards import EvaluateShards
from allmrec.evaluation.systems import Systems
from allmrec.llm.shown_order import ShownOrder
from allmrec.model import ALLMRec
from jobs import baselines, bundle, evaluate, train_tallrec
from jobs.config import Config
from jobs.pipeline import ordered, steps_of
from jobs.runtime.console import Console
from jobs.runtime.step import Context, beside_defaults, execute
from tests.jobs.in_process import jobs_in_process
from tests.jobs.test_train_baselines import metrics_of
from tests.nightly.nightly_run import SECOND, make, with_nightly

CONSOLE = Console(log_json=True)
TALLREC = {"epochs": 1, "batch_size": 20, "learning_rate": 0.05, "num_candidates": 4, "validation_users": 20}
LLM_SREC = {"dim": 8, "hidden": 16, "epochs": 1, "validation_users": 0}


def with_baselines(config: Config, **named) -> Config:
    return Config(**config.model_dump(exclude_unset=True) | {"baselines": named})


def comparing(config: Config, *systems: str) -> Config:
    return Config(**config.model_dump(exclude_unset=True) | {"evaluation": {"systems": systems}})


@pytest.fixture(scope="module", autouse=True)
def in_process() -> Iterator[None]:
    with jobs_in_process():
        yield


@pytest.fixture(scope="module")
def named(tiny_workspace) -> Config:
    """Trained and bundled, with LLM-SRec beside."""
    config, _ = tiny_workspace
    named = with_baselines(config, tallrec=TALLREC, llm_srec=LLM_SREC)
    execute(train_tallrec.STEP, named, CONSOLE)
    for step in baselines.steps(named):
        execute(step, named, CONSOLE)
    execute(bundle.STEP, named, CONSOLE)
    return named


def test_it_is_planned_trained_and_skipped(tiny_workspace, named, capsys):
    _, storage = tiny_workspace
    again = with_baselines(named, tallrec=TALLREC | {"epochs": 2})
    execute(train_tallrec.STEP, again, CONSOLE, dry_run=True)
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not planned["up to date"] and planned["steps"] == 2 * -(-planned["prompts"] // 20)
    assert planned["tokens_per_epoch"] > 0 and "gpu_hours_at_100_tflops" in planned
    assert not execute(train_tallrec.STEP, named, CONSOLE), "nothing has changed"
    stats = read_manifest(storage.at("systems/tallrec")).stats
    assert planned["prompts"] == pytest.approx(stats["prompts"], rel=0.2), "told from the first shard"
    assert stats["trained_weights"] == 2 * 2 * 2 * 8 * 32
    assert stats["best_epoch"] == 1 and len(stats["curve"]) == 1


def test_it_opens_in_peft(tiny_workspace, named):
    import peft

    config, storage = tiny_workspace
    llm = AutoModelForCausalLM.from_pretrained(config.llm.name)
    opened = peft.PeftModel.from_pretrained(llm, storage.at("systems/tallrec").root)
    assert opened.peft_config["default"].base_model_name_or_path == config.llm.name


def test_the_other_systems_figures_stay(tiny_workspace, named):
    config, storage = tiny_workspace
    version = latest_bundle(storage)
    assert set(load_bundle(storage, version).systems) == {"llm-srec", "tallrec"}
    assert "tallrec" in evaluate.compared(Context(named, named.workspace, CONSOLE, ""))
    others = ("teacher", "llm-only", "a-llmrec")
    beside = comparing(named, *others[:2], "tallrec", *others[2:])
    assert execute(evaluate.STEP, beside, CONSOLE)
    found = {system: metrics_of(storage, system) for system in (*others, "tallrec")}
    assert {protocol for protocol, _, _ in found["tallrec"]} == {"random", "matched", "swap"}
    assert found["tallrec"] != found["llm-only"]

    execute(bundle.STEP, config, CONSOLE)
    plain = latest_bundle(storage)
    execute(evaluate.STEP, comparing(config, *others), CONSOLE)
    assert all(metrics_of(storage, system) == found[system] for system in others)
    with pytest.raises(ValueError, match=rf"bundle {plain} has no tallrec; name it in `baselines`"):
        execute(evaluate.STEP, comparing(config, "teacher", "tallrec"), CONSOLE)
    promote(storage, version)


def test_llm_only_is_the_same_to_the_bit_before_between_and_after(tiny_workspace, named):
    config, storage = tiny_workspace
    systems = Systems(ALLMRec(load_bundle(storage, latest_bundle(storage)), config.llm), seed=0)
    table, sequences = read_table(storage.at("evaluation_cases")), Sequences.read(storage.at("sequences"))
    cases = Cases.select(table, sequences, "test", "random")
    plain = systems.score("llm-only", cases)
    tuned = systems.score("tallrec", cases)
    np.testing.assert_array_equal(systems.score("llm-only", cases), plain)
    np.testing.assert_array_equal(systems.score("tallrec", cases), tuned)
    assert np.abs(tuned - plain).max() > 0.01


def test_it_also_writes_answers(tiny_workspace, named):
    config, storage = tiny_workspace
    how = {"seed": 0, "recall_at": 5, "generation": 1.0}
    shards = EvaluateShards(storage, latest_bundle(storage), config.llm, ["tallrec"], **how)
    costs = shards.process(0).details["costs"]
    assert {cost["protocol"] for cost in costs if cost["tokens"]} == {"random", "matched", "swap", "generation"}


def test_a_nightly_run_ranks_by_it_merged_once(tiny_workspace, named, tmp_path: Path):
    config, storage = tiny_workspace
    nightly = with_nightly(named, tmp_path / "out", ranker="tallrec")
    first = make(nightly, storage)
    worker = first.worker
    assert not any("lora" in name for name, _ in worker.model.llm.named_modules())
    users = first.job.users.read(0).users
    candidates = worker.candidates(0, users).items
    order = ShownOrder.draw(users.hashes(), key64(nightly.seed, Draw.NIGHTLY_SHOWN), candidates.shape[1])
    switched = ALLMRec(worker.model.bundle, config.llm)
    with switched.tallrec():
        expected = switched.log_probabilities(users, candidates, order, None)
    np.testing.assert_allclose(worker.scores(users, candidates), np.exp(expected), atol=1e-5)

    # Where LLM-SRec retrieves, it reads by the LLM as it is.
    both = make(with_nightly(named, tmp_path / "both", ranker="tallrec", retriever="llm-srec"), storage)
    assert any("lora" in name for name, _ in both.worker.model.llm.named_modules())
    candidates = both.worker.candidates(0, users, both.worker.vectors.of_users(0, users)).items
    np.testing.assert_allclose(worker.scores(users, candidates), both.worker.scores(users, candidates), atol=1e-5)


def test_a_row_depends_on_the_system_that_ranks_it_alone(tiny_workspace, named, tmp_path: Path):
    _, storage = tiny_workspace
    version = latest_bundle(storage)
    configs = {ranker: with_nightly(named, tmp_path / ranker, ranker=ranker) for ranker in ("tallrec", "llm-srec")}
    users = [make(config, storage).figures["users"] for config in configs.values()]
    other = with_baselines(named, tallrec=TALLREC | {"epochs": 2}, llm_srec=LLM_SREC)
    execute(train_tallrec.STEP, other, CONSOLE)
    execute(bundle.STEP, other, CONSOLE)
    assert latest_bundle(storage) != version
    assert [make(config, storage, SECOND).figures["reused"] for config in configs.values()] == [0, users[1]]
    promote(storage, version)


def test_a_bundle_without_it_cannot_rank_by_it(tiny_workspace, named, tmp_path: Path):
    config, storage = tiny_workspace
    version = latest_bundle(storage)
    execute(bundle.STEP, config, CONSOLE)
    with pytest.raises(ValueError, match=rf"bundle {latest_bundle(storage)} has no tallrec; name it in `baselines`"):
        make(with_nightly(config, tmp_path, ranker="tallrec"), storage)
    promote(storage, version)


def test_a_bundle_takes_none_of_another_llm(tiny_workspace, named):
    _, storage = tiny_workspace
    part = storage.at("systems/tallrec")
    manifest = read_manifest(part)
    made = (manifest.kind, manifest.fingerprint, manifest.files, manifest.config)
    commit(part, *made, manifest.stats | {"llm": "another"})
    with pytest.raises(ValueError, match=r"tallrec was trained with another llm .* run train-baselines again"):
        execute(bundle.STEP, named, CONSOLE, force=True)
    commit(part, *made, manifest.stats)


def test_what_cannot_be_trained_is_told_before_any_worker_starts(tiny_workspace, named, monkeypatch):
    config, _ = tiny_workspace
    with pytest.raises(ValueError, match=r"set baselines: \{tallrec: \{\}\}"):
        execute(train_tallrec.STEP, config, CONSOLE)
    wrong = with_baselines(config, tallrec={"target_modules": ["c_attn"]})
    with pytest.raises(ValueError, match=r"no layers named c_attn; .*v_proj"):
        execute(train_tallrec.STEP, wrong, CONSOLE)
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (lambda: baselines.steps(named), lambda: execute(train_tallrec.STEP, named, CONSOLE, force=True)):
        with pytest.raises(ValueError, match=r"pip install 'allmrec\[lora\]'"):
            call()


def test_a_run_trains_it_before_the_bundle_and_needs_no_teacher(named):
    steps = ordered(steps_of(named, datetime.date(2026, 11, 29)))
    verbs = [step.verb for step in steps]
    assert verbs.index("train-baselines tallrec") < verbs.index("bundle")
    assert "teacher" not in train_tallrec.STEP.inputs
    sections = train_tallrec.STEP.sections
    alone = with_baselines(named, tallrec=TALLREC)
    assert beside_defaults(named, sections) == beside_defaults(alone, sections)
