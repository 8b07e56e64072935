"""What is loaded is a whole LLM with a tokenizer that fits it, or the error says what is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer
from allmrec.llm.ranking import Ranker
from tests.llm.architectures import ARCHITECTURES, CANDIDATES, HISTORIES, plain, prompts_for
from tests.text.tiny import change


@pytest.fixture
def folder(tiny_llm, tiny_tokenizer, tmp_path) -> Path:
    tiny_llm.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    return tmp_path


FC1 = "model.decoder.layers.0.fc1.weight"
DAMAGES = {
    "no embeddings": (
        {"model.decoder.embed_tokens.weight": None},
        r"lacks 2 weights: lm_head.weight, .*embed_tokens.weight",
    ),
    "a weight less": ({FC1: None}, rf"lacks 1 weights: {FC1}"),
    "another shape": ({FC1: torch.zeros(32, 32)}, rf"has in another shape 1 weights: {FC1} \[32, 32\] for \[64, 32\]"),
    "a shape that would broadcast": ({FC1: torch.zeros(1, 32)}, rf"another shape 1 weights: {FC1} \[1, 32\]"),
    "a weight more": ({"model.decoder.adapter.weight": torch.zeros(2)}, "has besides 1 weights: .*adapter.weight"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_not_the_models_is_refused(folder, damage):
    tensors, message = DAMAGES[damage]
    change(folder, **tensors)
    with pytest.raises(ValueError, match=message):
        load_llm(LLMConfig(name=str(folder)))


def test_tied_weights_and_buffers_are_no_loss(tiny_tokenizer, tmp_path):
    llm = ARCHITECTURES["Llama, tied"].build(len(tiny_tokenizer))
    llm.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    change(tmp_path, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)})  # as old Llamas have it
    loaded = load_llm(LLMConfig(name=str(tmp_path), dtype="float32"))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    builder, soft = prompts_for(llm, tiny_tokenizer)
    found = np.exp(Ranker(loaded, builder, 4096).log_probabilities(HISTORIES, CANDIDATES, soft))
    np.testing.assert_allclose(found, plain(llm, builder, soft), atol=1e-5)


def test_a_pad_token_behind_the_embeddings_is_never_read(folder, tiny_llm, tiny_tokenizer):
    padded = PreTrainedTokenizerFast.from_pretrained(folder)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id >= tiny_llm.config.vocab_size
    padded.save_pretrained(folder)
    loaded = load_tokenizer(LLMConfig(name=str(folder)))
    assert loaded.pad_token_id == loaded.eos_token_id
    builder, soft = prompts_for(tiny_llm, loaded)
    other, _ = prompts_for(tiny_llm, tiny_tokenizer)
    np.testing.assert_array_equal(
        Ranker(tiny_llm, builder, 4096).log_probabilities(HISTORIES, CANDIDATES, soft),
        Ranker(tiny_llm, other, 4096).log_probabilities(HISTORIES, CANDIDATES, soft),
    )


def test_without_an_end_token_there_is_no_end_of_a_title(folder):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["eos_token"]
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"no end token.*eos_token"):
        load_tokenizer(LLMConfig(name=str(folder)))


def test_without_a_bos_token_prompts_begin_with_their_words(folder, tiny_llm, tiny_tokenizer):
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["bos_token"]
    path.write_text(json.dumps(settings))
    loaded = load_tokenizer(LLMConfig(name=str(folder)))
    assert loaded.bos_token_id is None
    builder, soft = prompts_for(tiny_llm, loaded)
    with_bos, _ = prompts_for(tiny_llm, tiny_tokenizer)
    lengths = builder.build(HISTORIES, CANDIDATES).lengths
    assert (with_bos.build(HISTORIES, CANDIDATES).lengths - lengths == 1).all()
    found = np.exp(Ranker(tiny_llm, builder, 4096).log_probabilities(HISTORIES, CANDIDATES, soft))
    np.testing.assert_allclose(found, plain(tiny_llm, builder, soft), atol=1e-5)


def test_words_behind_the_embeddings_are_named(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["Zaphod"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has \['Zaphod'\], which are beyond the \d+ embeddings"):
        load_tokenizer(LLMConfig(name=str(folder)))


def test_an_end_token_behind_the_embeddings_is_named(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"\['\[END\]'"):
        load_tokenizer(LLMConfig(name=str(folder)))
