"""Runs ranked by LLM-SRec: its products order the candidates, and what did not change costs nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from allmrec.bundle.build import refresh_bundle
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle, promote
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.storage import Storage
from allmrec.model import ALLMRec
from allmrec.nightly.config import NightlyConfig
from allmrec.readout.network import ReadoutConfig, fresh_readout, save_readout
from jobs import bundle
from jobs.config import Config
from tests.evaluation.tiny import NUM_ITEMS, NUM_USERS, tiny_config, write_tiny_workspace
from tests.jobs.in_process import executed
from tests.nightly.nightly_run import SECOND, make, with_nightly
from tests.nightly.test_new_items import NEW, embed, prepare_again

READOUT = {"dim": 8, "hidden": 16}


def bundled(config: Config, storage: Storage, llm: Any, seed: int, **weights: float) -> Config:
    """Promote a bundle with an untrained LLM-SRec; the config that it was built by.

    Args:
        weights: of the part, by name with _ for dots, that are this number instead.
    """
    named = Config(**config.model_dump(exclude_unset=True) | {"baselines": {"llm_srec": READOUT}})
    items_ND = torch.randn(NUM_ITEMS + 1, config.teacher.dim, generator=torch.Generator().manual_seed(0))
    vectors_NV = torch.randn(NUM_ITEMS + 1, 8, generator=torch.Generator().manual_seed(seed))
    readout = fresh_readout(ReadoutConfig(**READOUT), items_ND, llm.get_input_embeddings().weight, seed)
    for name, value in weights.items():
        (vectors_NV if name == "vectors" else readout.get_parameter(name.replace("_", "."))).data.fill_(value)
    resolved = {"baselines": named.model_dump(mode="json")["baselines"]}
    with writing(storage.at("systems/llm-srec"), "llm-srec", f"seed {seed}", resolved) as out:
        out.add(save_readout(storage.at("systems/llm-srec"), readout.state_dict(), readout.fixed(), vectors_NV))
        out.stats |= {"llm": read_manifest(storage.at("projectors")).stats["llm"]}
        out.stats |= {"teacher": read_manifest(storage.at("teacher")).digest}
    executed(bundle.STEP, named)
    return named


def test_runs_by_llm_srec(tiny_workspace, tiny_llm, tmp_path: Path) -> None:
    plain_config, storage = tiny_workspace
    plain = latest_bundle(storage)
    with pytest.raises(ValueError, match=rf"bundle {plain} has no llm-srec; name it in `baselines`"):
        make(with_nightly(plain_config, tmp_path / "none", ranker="llm-srec"), storage)

    named = bundled(plain_config, storage, tiny_llm, seed=1)
    config = with_nightly(named, tmp_path / "out", ranker="llm-srec")
    first = make(config, storage)
    model = first.worker.model
    assert first.figures["scored_by_llm"] == NUM_USERS and first.figures["tokens"] == model.llm_srec.tokens > 0
    users = first.job.users.read(0).users
    x_UV = model.llm_srec.represent(users)
    ids = model.bundle.catalogue.item_ids.to_pylist()
    for row, user in enumerate(users.user_ids.to_pylist()):
        items = first.by_user[user]["items"]
        scores = [float(x_UV[row] @ model.llm_srec.item_embeddings[ids.index(item["item_id"])]) for item in items]
        np.testing.assert_allclose([item["score"] for item in items], scores, atol=1e-5)
        assert scores == sorted(scores, reverse=True)

    assert (first.figures["vectors_read"], first.figures["vectors_reused"]) == (NUM_USERS, 0)

    second = make(config, storage, SECOND)
    assert second.figures["reused"] == NUM_USERS and second.lists() == first.lists()
    assert "llm" not in vars(second.worker.model), "an unchanged night asks the LLM nothing"
    # Rows of other lengths are made again, of the vectors that were kept.
    longer = make(with_nightly(named, tmp_path / "out", ranker="llm-srec", top_k=6), storage, SECOND.replace(day=23))
    assert longer.figures["reused"] == longer.figures["vectors_read"] == 0
    assert longer.figures["vectors_reused"] == longer.figures["scored_by_llm"] == NUM_USERS
    assert {user: items[:5] for user, items in longer.lists().items()} == first.lists()
    assert "llm" not in vars(longer.worker.model)

    # Trained again, it ranks everyone again; no other ranker's rows depend on it.
    teacher = with_nightly(named, tmp_path / "teacher", ranker="teacher")
    before = make(teacher, storage)
    bundled(plain_config, storage, tiny_llm, seed=2)
    trained = make(config, storage, SECOND.replace(day=24))
    assert trained.figures["reused"] == 0 and trained.figures["vectors_read"] == NUM_USERS
    assert make(teacher, storage, SECOND).figures["reused"] == len(before.rows) == NUM_USERS
    promote(storage, plain)


def test_items_that_are_new_since_training_are_read_when_the_bundle_is_loaded(tiny_llm, tiny_tokenizer, tmp_path: Path):
    config = tiny_config(tmp_path)
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    named = bundled(config, storage, tiny_llm, seed=1)
    before = ALLMRec(load_bundle(storage, latest_bundle(storage)), named.llm)
    prepare_again(storage)
    embed(storage)
    after = ALLMRec(load_bundle(storage, refresh_bundle(storage, before.bundle.version)), named.llm)
    old, new = (model.bundle.items.column("item_id").to_pylist() for model in (before, after))
    for item, vector in zip(new, after.llm_srec.item_embeddings[1:], strict=True):
        if item == NEW:
            found = after.llm_srec.vectors_of(np.array([new.index(NEW) + 1]))[0]
            torch.testing.assert_close(vector, found, atol=1e-5, rtol=1e-4)
            assert vector.any()
        else:
            assert torch.equal(vector, before.llm_srec.item_embeddings[1:][old.index(item)])


def test_candidates_cost_nothing_so_there_are_more() -> None:
    assert NightlyConfig(ranker="llm-srec").num_candidates == 200 and NightlyConfig().num_candidates == 20
    assert NightlyConfig(ranker="llm-srec", num_candidates=50).num_candidates == 50
