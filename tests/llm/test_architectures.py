"""P(c) is what the LLM's own forward pass gives, whatever the architecture, or the LLM is refused by name."""

import numpy as np
import pytest
import torch

from allmrec.llm import probe
from allmrec.llm.probe import deviation, refuse_by_name, refuse_deviating, refuse_inexact
from allmrec.llm.ranking import Ranker
from tests.llm.architectures import ARCHITECTURES, CANDIDATES, HISTORIES, plain, prompts_for

SUPPORTED = [name for name, architecture in ARCHITECTURES.items() if architecture.supported]
REFUSED = [name for name, architecture in ARCHITECTURES.items() if not architecture.supported]


@pytest.mark.parametrize("name", SUPPORTED)
def test_equals_plain_forward_passes(name, tiny_tokenizer):
    llm = ARCHITECTURES[name].build(len(tiny_tokenizer))
    builder, soft = prompts_for(llm, tiny_tokenizer)
    assert builder.build(HISTORIES, CANDIDATES).lengths.min() > 3 * 16, "windows are exceeded"
    found = np.exp(Ranker(llm, builder, 4096).log_probabilities(HISTORIES, CANDIDATES, soft))
    expected = plain(llm, builder, soft)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.max() > 1.5 / CANDIDATES.shape[1], "it is decided enough for errors to show"


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_name(name, tiny_tokenizer):
    llm = ARCHITECTURES[name].build(len(tiny_tokenizer))
    builder, _ = prompts_for(llm, tiny_tokenizer)
    with pytest.raises(ValueError, match=f"architecture '{llm.config.model_type}' cannot be used: .*docs/llms.md"):
        Ranker(llm, builder, 4096)


@pytest.mark.parametrize("name", ["OPT", "Gemma 3, windows", "Cohere, scaled logits"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_not_refused(name, dtype, tiny_tokenizer):
    refuse_inexact(ARCHITECTURES[name].build(len(tiny_tokenizer)).to(dtype))


@pytest.mark.parametrize("name", ["Mistral, windows", "BLOOM", "MPT", "Qwen3-Next", "LFM2", "Falcon, ALiBi"])
def test_the_probe_sees_what_names_do_not(name, tiny_tokenizer):
    """Were an architecture of the kind not recognised, the numbers would still say it."""
    architecture = ARCHITECTURES[name]
    llm = architecture.build(len(tiny_tokenizer))
    found = deviation(llm)
    if architecture.supported:
        refuse_deviating(llm, found)
    else:
        with pytest.raises(ValueError, match="off by"):
            refuse_deviating(llm, found)


def test_nan_deviates(tiny_llm):
    with pytest.raises(ValueError, match="'opt'"):
        refuse_deviating(tiny_llm, float("nan"))


def test_a_head_that_is_more_than_a_projection_is_read_whole(tiny_tokenizer):
    """A scale or a cap behind the projection changes P(c); `get_output_embeddings()` knows neither."""
    llm = ARCHITECTURES["Cohere, scaled logits"].build(len(tiny_tokenizer))
    builder, soft = prompts_for(llm, tiny_tokenizer)
    scaled = Ranker(llm, builder, 4096).log_probabilities(HISTORIES, CANDIDATES, soft)
    llm.logit_scale = 1.0
    assert (
        np.abs(np.exp(Ranker(llm, builder, 4096).log_probabilities(HISTORIES, CANDIDATES, soft) - scaled) - 1).max()
        > 0.1
    )


def test_an_llm_is_measured_once(tiny_tokenizer, monkeypatch):
    llm = ARCHITECTURES["Llama"].build(len(tiny_tokenizer))
    refuse_inexact(llm)
    monkeypatch.setattr(probe, "deviation", None)
    refuse_inexact(llm)


def test_masks_are_transformers_again_afterwards(tiny_llm, tiny_tokenizer):
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    before = dict(ALL_MASK_ATTENTION_FUNCTIONS)
    deviation(tiny_llm)
    with pytest.raises(ValueError, match="cannot be used"):
        deviation(ARCHITECTURES["GPT"].build(len(tiny_tokenizer)))
    assert dict(ALL_MASK_ATTENTION_FUNCTIONS) == before


def test_names_are_found_without_weights(tiny_tokenizer):
    with torch.device("meta"):
        llm = ARCHITECTURES["LFM2"].build(len(tiny_tokenizer))
    with pytest.raises(ValueError, match="'lfm2' cannot be used: some of its layers carry a state"):
        refuse_by_name(llm)
