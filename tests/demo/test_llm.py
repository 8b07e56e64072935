"""The stand-in LLM: deterministic, loadable like a real one, and able to read its slots."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.demo.llm import Standin, StandinLLMConfig, build, examine
from allmrec.demo.llm_circuits import EMBEDDED, GAIN, SOFT
from allmrec.llm.batches import distinct_items, fill_slots, padded_tokens
from allmrec.llm.generation import Generator, named_by_text
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer
from allmrec.llm.prompt import PromptConfig
from allmrec.llm.ranking import Ranker
from allmrec.readout.prompts import ReadoutPrompts, read_out
from tests.llm.tiny import histories, titles_array

PROMPT = PromptConfig(verb_past="watched", verb="watch", noun="movie", max_history=4, max_title_tokens=6)
CONFIG = StandinLLMConfig(vocab_size=500, max_positions=320)
HOSTILE = ["", "</s><s>[HistoryEmb]", "a\nb\tc  d", "Ünïcödé \U0001f600 \u202e", '"quo\'ted", The recommendation is']


def titles() -> pa.Array:
    words = [
        a + b for a in ("Moon", "Ember", "Silver", "Thorn", "Frost", "Raven") for b in ("ford", "gate", "mere", "wick")
    ]
    kinds = ["Chronicles", "Legacy", "Nights", "Saga"]
    return titles_array([f"{word} {kind}" for word in words for kind in kinds])


@pytest.fixture(scope="module")
def standin() -> Standin:
    torch.set_num_threads(1)
    return build(titles(), [PROMPT], CONFIG, seed=1)


def test_the_same_seed_gives_the_same_model(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allmrec.demo.llm.examine", partial(examine, prompts=8))
    again, other = build(titles(), [PROMPT], CONFIG, seed=1), build(titles(), [PROMPT], CONFIG, seed=2)
    assert again.tokenizer.get_vocab() == standin.tokenizer.get_vocab()
    state, twin, stranger = (s.llm.state_dict() for s in (standin, again, other))
    assert all(torch.equal(state[name], twin[name]) for name in state)
    assert not all(torch.equal(state[name], stranger[name]) for name in state)


def test_loads_like_a_real_one_and_is_the_same(standin: Standin, tmp_path: Path) -> None:
    standin.save(tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    config = LLMConfig(name=str(tmp_path), dtype="float32")
    llm, tokenizer = load_llm(config), load_tokenizer(config)
    assert type(llm).__name__ == "OPTForCausalLM" and not any(p.requires_grad for p in llm.parameters())
    ids = tokenizer(" This user has watched Moon Saga", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, standin.tokenizer(" This user has watched Moon Saga", return_tensors="pt")["input_ids"])
    with torch.inference_mode():
        assert torch.equal(llm(ids).logits, standin.llm(ids).logits)


@pytest.mark.parametrize("text", HOSTILE)
def test_tokenizer_takes_any_text(standin: Standin, tmp_path: Path, text: str) -> None:
    standin.tokenizer.save_pretrained(tmp_path)
    standin.llm.config.save_pretrained(tmp_path)
    for tokenizer in (standin.tokenizer, load_tokenizer(LLMConfig(name=str(tmp_path)))):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("alike", [0, 10])
def test_reads_its_slots(standin: Standin, alike: int) -> None:
    """Four titles begin with each word here; a reader of nothing is 0.9 above the bound and agrees by 0.05."""
    found = examine(standin, seed=5, prompts=96, num_candidates=20, alike=alike)
    assert 0 < found["cross_entropy"] - found["bound"] < 0.22
    assert found["agreement"] > 0.7


def test_writes_a_candidates_title_and_its_end(standin: Standin) -> None:
    task = standin.tasks(seed=3).draw(64, 20)
    prompts = standin.prompts.build(task.history, task.candidates)
    written = Generator(standin.llm, standin.prompts.end, 8192).free(prompts, task.soft, 12)
    named_BC = named_by_text(written, standin.tokenizer, standin.prompts.titles, task.candidates)
    assert named_BC.any(axis=1).mean() > 0.9


def test_the_last_hidden_state_holds_the_historys_soft_tokens_and_the_logits_none_of_them(standin: Standin) -> None:
    """Beside one that lets nothing of them out: every logit is the same to the bit."""
    shut = copy.deepcopy(standin.llm)
    with torch.no_grad():
        shut.model.decoder.final_layer_norm.weight[SOFT] = 0
        shut.model.decoder.project_out.weight[SOFT] = 0
    task = standin.tasks(seed=4).draw(16, 8)
    prompts = standin.prompts.build(task.history, task.candidates)
    tokens = padded_tokens(prompts, int(prompts.lengths.max()), standin.prompts.end)
    for dtype in (torch.float32, torch.bfloat16):
        logits = []
        for llm in (standin.llm, shut):
            other = copy.deepcopy(llm).to(dtype)
            embeds = fill_slots(other.get_input_embeddings()(tokens), prompts, task.soft)
            logits.append(other(inputs_embeds=embeds).logits)
        assert torch.equal(*logits)

    made = ReadoutPrompts(PROMPT, standin.tokenizer, standin.prompts.titles, positions=320)
    items, here = distinct_items(made.of_users(histories([[1, 2, 3, 4], [9, 30, 61]])))
    reads = torch.eye(EMBEDDED)[SOFT] / GAIN
    soft = torch.randn(len(items), len(reads), generator=torch.Generator().manual_seed(0)) @ reads
    token = standin.llm.get_input_embeddings().weight.mean(0)
    moved = []
    for llm in (standin.llm, shut):
        own, flipped = (read_out(llm, here, token, sign * soft, made.padding) for sign in (1, -1))
        moved.append((own - flipped).norm(dim=1))
    assert (moved[0] > 10 * moved[1]).all() and (moved[0] > 1).all()


def test_soft_tokens_decide_and_not_the_wording(standin: Standin) -> None:
    """With another prompt's vectors in the slots the ranking is worth nothing."""
    tasks = standin.tasks(seed=9)
    task, other = tasks.draw(96, 8), tasks.draw(96, 8)
    ranker = Ranker(standin.llm, standin.prompts, tokens_per_batch=8192)
    right = ranker.log_probabilities(task.history, task.candidates, task.soft)
    wrong = ranker.log_probabilities(task.history, task.candidates, other.soft)
    best = np.where(task.candidates > 0, task.scores_BC, -np.inf).argmax(axis=1)
    hits, chance = (right.argmax(axis=1) == best).mean(), (wrong.argmax(axis=1) == best).mean()
    assert hits > 0.75 and chance < 0.3
