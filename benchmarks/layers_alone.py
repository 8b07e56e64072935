"""An LLM's layers and nothing else, on the prompts that are trained on or ranked: no step can leave these out."""

from typing import Any

import torch

from allmrec.data.cases import Cases
from allmrec.llm.batches import padded_tokens, take, token_budget_batches
from allmrec.llm.packed import packed_width
from allmrec.llm.trie import build_tries
from benchmarks.decoding_methods import Ways

LAYERS = "the LLM's layers alone"


def hidden_states(llm: Any, tokens_BT: torch.Tensor, gradients: bool = False) -> torch.Tensor:
    """Forward, by causal attention without a mask; float (B, T, H).

    Args:
        gradients: of the inputs are to be computed by a backward pass.
    """
    device = llm.get_input_embeddings().weight.device
    tokens_BT = tokens_BT.to(device)
    return llm.base_model(
        inputs_embeds=llm.get_input_embeddings()(tokens_BT).requires_grad_(gradients),
        attention_mask=torch.ones_like(tokens_BT),
        position_ids=torch.arange(tokens_BT.shape[1], device=device).expand_as(tokens_BT),
        use_cache=False,
    ).last_hidden_state


@torch.inference_mode()
def read_as_ranked(ways: Ways, cases: Cases) -> int:
    """The tokens of trie ranking, in its batches; returns how many there are without padding."""
    shown_BC, _ = ways.shown(cases)
    builder, total = ways.builder, 0
    prompts = builder.build(cases.histories, shown_BC)
    for rows in token_budget_batches(prompts.lengths, ways.budget):
        here, tries = take(prompts, rows), build_tries(builder.titles, shown_BC[rows], builder.end)
        hidden_states(ways.llm, padded_tokens(here, packed_width(here, tries), builder.end))
        total += len(here.tokens) + len(tries.node_row)
    return total
