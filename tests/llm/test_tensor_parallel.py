"""An LLM in two parts, each in a process, gives the scores of the whole; one without a plan is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from allmrec.llm.batches import SoftTokens
from allmrec.llm.loading import LLMConfig, load_llm
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.llm.ranking import Ranker
from allmrec.llm.tensor_parallel import is_in_parts, load_llm_in_parts, refuse_without_plan, release
from tests.llm.tiny import histories, titles_array

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_llama(folder: Path, vocabulary: int, key_heads: int = 2) -> LLMConfig:
    torch.manual_seed(0)
    shape = {**SHAPE, "num_key_value_heads": key_heads, "initializer_range": 0.2, "max_position_embeddings": 512}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape)).save_pretrained(folder)
    return LLMConfig(name=str(folder), dtype="float32")


def test_two_ranks_give_the_scores_of_the_whole_llm(tiny_tokenizer, tmp_path: Path) -> None:
    config = save_llama(tmp_path, len(tiny_tokenizer))
    titles = Titles.tokenise(titles_array(["Moon", "Moon fall", "Garden", "II"]), tiny_tokenizer, 24)
    builder = PromptBuilder(PromptConfig(), tiny_tokenizer, titles, soft=True, max_tokens=400)
    generator = torch.Generator().manual_seed(0)
    soft = SoftTokens(torch.randn(3, 32, generator=generator), torch.randn(5, 32, generator=generator))
    prompts = histories([[1], [2, 3], [4]]), np.array([[1, 2, 3, 4], [4, 2, 1, 0], [2, 1, 3, 4]], dtype=np.int32), soft
    expected = Ranker(load_llm(config), builder, 300).log_probabilities(*prompts)
    cut = load_llm_in_parts(config, 2)
    try:
        assert is_in_parts(cut)
        layer = cut.model.layers[0].mlp.up_proj.weight
        assert layer.to_local().shape == (32, 32) and layer.shape == (64, 32), "half of it is here"
        np.testing.assert_allclose(Ranker(cut, builder, 300).log_probabilities(*prompts), expected, atol=1e-5)
    finally:
        release(cut)


def test_what_cannot_be_cut_is_refused(tiny_bundle, tiny_tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gpus_per_worker 2: transformers has no plan .*'opt', over several GPUs"):
        refuse_without_plan(tiny_bundle[0].llm, 2)
    config = save_llama(tmp_path, len(tiny_tokenizer), key_heads=1)
    with pytest.raises(ValueError, match=r"gpus_per_worker 2 does not divide the 4 heads .* the 1 of its keys"):
        refuse_without_plan(config, 2)
