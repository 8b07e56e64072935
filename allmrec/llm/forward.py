"""The LLM's own forward pass, read where it is needed: its own masks, by positions, and its whole head.

A row may hold a tree: several continuations behind one prompt, each of which sees the prompt and itself. Which tokens
a layer sees is still the model's to say (causality, sliding windows, chunks): its mask functions of transformers are
asked about the tokens' positions in the text, not about their columns in the row. Logits are scaled and capped as the
model does it. Knows nothing of prompts or candidates.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# B rows, L tokens, K places, H token dimension, V vocabulary

_IMPLEMENTATIONS = ("sdpa", "eager")  # of attention: those that take a mask of numbers


def logits_at(llm: Any, positions_K: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """The LLM's logits, float32 (K, V), at some places of a batch; elsewhere none are computed.

    Args:
        positions_K: int64, into the flattened (B, L).
        inputs: what the LLM is called with.
    """

    def only_there(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        (hidden_BLH,) = arguments
        return (hidden_BLH.flatten(0, 1)[positions_K][None],)

    with llm.get_output_embeddings().register_forward_pre_hook(only_there):
        return llm(**inputs).logits[0].float()


def states_at(llm: Any, positions_K: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """The LLM's last hidden states, behind its final norm, at some positions of a batch: float32 (K, H).

    Args:
        positions_K: int64, into the flattened (B, L).
        inputs: what the LLM is called with.
    """
    return llm.base_model(**inputs).last_hidden_state.flatten(0, 1)[positions_K].float()


def tree_logits_at(
    llm: Any, positions_K: torch.Tensor, embeds_BLH: torch.Tensor, visible_BLL: torch.Tensor, positions_BL: torch.Tensor
) -> torch.Tensor:
    """As `logits_at`, of rows that hold trees.

    Args:
        visible_BLL: bool: the tokens of its own text that each token has before it, and itself.
        positions_BL: int64: each token's position in its text.

    Raises:
        ValueError: the LLM makes its masks otherwise.
    """
    return _of_trees(logits_at, llm, positions_K, embeds_BLH, visible_BLL, positions_BL)


def tree_states_at(
    llm: Any, positions_K: torch.Tensor, embeds_BLH: torch.Tensor, visible_BLL: torch.Tensor, positions_BL: torch.Tensor
) -> torch.Tensor:
    """As `states_at`, of rows that hold trees; see `tree_logits_at`."""
    return _of_trees(states_at, llm, positions_K, embeds_BLH, visible_BLL, positions_BL)


def _of_trees(
    read: Callable[..., torch.Tensor],
    llm: Any,
    positions_K: torch.Tensor,
    embeds_BLH: torch.Tensor,
    visible_BLL: torch.Tensor,
    positions_BL: torch.Tensor,
) -> torch.Tensor:
    ones_BL = torch.ones_like(positions_BL)  # or a row whose positions go back is taken for several texts
    with _tree_masks(visible_BLL, positions_BL) as calls:
        found = read(
            llm,
            positions_K,
            inputs_embeds=embeds_BLH,
            attention_mask=ones_BL,
            position_ids=positions_BL,
            use_cache=False,
        )
    if not calls:
        raise refusal(llm, "it does not take its attention's masks from transformers")
    return found


def refusal(llm: Any, why: str) -> ValueError:
    """What to raise for an LLM whose trees would not be read as its texts are."""
    return ValueError(
        f"an LLM of the architecture {llm.config.model_type!r} cannot be used: {why}, so P(c) would not be the LLM's "
        "own; take one of the architectures that docs/llms.md lists as supported"
    )


@contextmanager
def _tree_masks(visible_BLL: torch.Tensor, positions_BL: torch.Tensor) -> Iterator[list[bool]]:
    """Within it, models that make their masks by transformers' `masking_utils` make those of trees.

    Yields a list that is empty until one is made.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as interfaces

    calls: list[bool] = []
    row_B11 = torch.arange(len(positions_BL), device=positions_BL.device)[:, None, None]

    def tree_mask(*, mask_function: Callable[..., torch.Tensor], dtype: torch.dtype, **_: Any) -> torch.Tensor:
        """Additive, (B, 1, L, L)."""
        calls.append(True)
        seen = visible_BLL & mask_function(row_B11, 0, positions_BL[:, :, None], positions_BL[:, None, :])
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[
            :, None
        ]

    for name in _IMPLEMENTATIONS:
        interfaces[name] = tree_mask
    try:
        yield calls
    finally:
        for name in _IMPLEMENTATIONS:
            del interfaces[name]
