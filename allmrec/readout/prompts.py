"""A user's and an item's prompt, and what the frozen LLM says of them at the readout token behind each.

The prompts are made by the builder of every other prompt, without candidates. The readout token is no text: its
embedding is put behind the prompt's, so no title can make or move it.

Dimensions: B prompts, T tokens, I items in slots, H token dimension
"""

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens
from allmrec.llm.forward import states_at
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Prompts, Template, Titles


def taste(config: PromptConfig) -> Template:
    """What is this user like?"""
    return Template(f" This user has {config.verb_past}", "", " in the past. In one word, the user's taste is:")


def character(config: PromptConfig) -> Template:
    """What is this item like?"""
    return Template(f" This {config.noun} is", "", f". In one word, the {config.noun} is:")


class ReadoutPrompts:
    """Makes both kinds of prompts, to which one token more is added.

    Attributes:
        users: the builder of users' prompts: the history, titles and slots.
    """

    def __init__(self, config: PromptConfig, tokenizer: Any, titles: Titles, positions: int):
        """
        Args:
            positions: how many the LLM has.
        """
        slots = {"user_slot": False, "item_slots": True, "slots": "behind"}
        user, item = (config.model_copy(update={**slots, **more}) for more in ({}, {"max_history": 1}))
        self.users = PromptBuilder(user, tokenizer, titles, True, positions - 1, taste(config))
        self._items = PromptBuilder(item, tokenizer, titles, True, positions - 1, character(config))

    @property
    def padding(self) -> int:
        """A token that is never seen."""
        return self.users.end

    def of_users(self, histories: Sequences) -> Prompts:
        return _without_candidates(self.users, histories)

    def of_items(self, items: np.ndarray) -> Prompts:
        """One each."""
        alone = Sequences(pa.nulls(len(items), pa.string()), np.arange(len(items) + 1), items.astype(np.int32))
        return _without_candidates(self._items, alone)


def read_out(llm: Any, prompts: Prompts, token_H: torch.Tensor, soft_IH: torch.Tensor, padding: int) -> torch.Tensor:
    """The LLM's last hidden states at a readout token behind each prompt: float32 (B, H).

    Args:
        prompts: whose slots have rows of `soft_IH`.
    """
    device, lengths = token_H.device, torch.from_numpy(prompts.lengths).to(token_H.device)
    rows_B, width = torch.arange(len(prompts), device=device), int(prompts.lengths.max()) + 1
    tokens_BT = padded_tokens(prompts, width, padding).to(device)
    embeds_BTH = llm.get_input_embeddings()(tokens_BT)
    nobody_BH = soft_IH.new_zeros(len(prompts), soft_IH.shape[1])
    embeds_BTH = fill_slots(embeds_BTH, prompts, SoftTokens(nobody_BH, soft_IH))
    readout_BH = token_H.to(embeds_BTH.dtype).expand(len(prompts), -1)
    embeds_BTH = embeds_BTH.index_put((rows_B, lengths), readout_BH)
    # Padding is on the right, where causality alone hides it: no mask, and so the fastest attention.
    return states_at(
        llm,
        rows_B * width + lengths,
        inputs_embeds=embeds_BTH,
        attention_mask=torch.ones_like(tokens_BT),
        position_ids=torch.arange(width, device=device).expand_as(tokens_BT),
        use_cache=False,
    )


def _without_candidates(builder: PromptBuilder, histories: Sequences) -> Prompts:
    return builder.build(histories, np.zeros((len(histories), 0), dtype=np.int32))
