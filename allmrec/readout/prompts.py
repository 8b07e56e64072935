"""A user's and an item's prompt, and what the frozen LLM says of them at the readout token behind each.

The prompts are made by the builder of every other prompt, without candidates. The readout token is no text: its
embedding is put behind the prompt's, so no title can make or move it.

A prompt may be read earlier, too: a *branch* leaves it behind one of its items and ends as prompts do, with their last
words and a readout token. It sees the prompt up to there and itself, so it reads what a prompt of these items reads.

Dimensions: B prompts, K branches, R = B + K readouts, T tokens, L columns of a row with its branches, W words at the
end of a prompt, I items in slots, H token dimension
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens
from allmrec.llm.forward import states_at, tree_states_at
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Prompts, Template, Titles


def taste(config: PromptConfig) -> Template:
    """What is this user like?"""
    return Template(f" This user has {config.verb_past}", "", " in the past. In one word, the user's taste is:")


def character(config: PromptConfig) -> Template:
    """What is this item like?"""
    return Template(f" This {config.noun} is", "", f". In one word, the {config.noun} is:")


@dataclass(frozen=True)
class Branches:
    """Where prompts are read earlier."""

    rows: np.ndarray  # int64 (K,), ascending: the prompt of each
    behind: np.ndarray  # int64 (K,): the last column of its prompt that each sees
    words: np.ndarray  # int32 (W,): the end of every prompt

    def __len__(self) -> int:
        return len(self.rows)

    def per_prompt(self, prompts: int) -> np.ndarray:
        """int64 (B,)."""
        return np.bincount(self.rows, minlength=prompts)

    def tokens(self, prompts: int) -> np.ndarray:
        """With the readout tokens, int64 (B,)."""
        return self.per_prompt(prompts) * (len(self.words) + 1)

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, "Branches"]:
        """Those of some prompts: which, and their branches."""
        place = np.full(max(rows.max(initial=0), self.rows.max(initial=0)) + 1, -1)
        place[rows] = np.arange(len(rows))
        kept = np.flatnonzero(place[self.rows] >= 0)
        kept = kept[np.argsort(place[self.rows[kept]], kind="stable")]
        return kept, Branches(place[self.rows[kept]], self.behind[kept], self.words)


NONE = Branches(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32))


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
        words = tokenizer(taste(config).answer, add_special_tokens=False)["input_ids"]
        self._words = np.asarray(words, dtype=np.int32)

    @property
    def padding(self) -> int:
        """A token that is never seen."""
        return self.users.end

    def of_users(self, histories: Sequences) -> Prompts:
        return _without_candidates(self.users, histories)

    def branches(self, prompts: Prompts, most: int) -> tuple[np.ndarray, Branches]:
        """Those behind each user's newest items but the last, at most `most` a prompt: how many of the items that the
        prompt shows come after each branch, int64 (K,), and the branches."""
        rows = prompts.slot_rows()
        shown_B = np.bincount(rows, minlength=len(prompts))
        after = shown_B[rows] - 1 - (np.arange(len(rows)) - np.searchsorted(rows, rows))
        chosen = np.flatnonzero((after >= 1) & (after <= most))
        behind = prompts.slot_positions[chosen] - prompts.offsets[rows[chosen]]
        return after[chosen], Branches(rows[chosen], behind, self._words)

    def of_items(self, items: np.ndarray) -> Prompts:
        """One each."""
        alone = Sequences(pa.nulls(len(items), pa.string()), np.arange(len(items) + 1), items.astype(np.int32))
        return _without_candidates(self._items, alone)


def read_out(
    llm: Any,
    prompts: Prompts,
    token_H: torch.Tensor,
    soft_IH: torch.Tensor,
    padding: int,
    branches: Branches = NONE,
) -> torch.Tensor:
    """The LLM's last hidden states at the readout tokens, behind each prompt and then each branch: float32 (R, H).

    Args:
        prompts: whose slots have rows of `soft_IH`.
    """
    width = int((prompts.lengths + 1 + branches.tokens(len(prompts))).max())
    tokens_BL, device = padded_tokens(prompts, width, padding), token_H.device
    columns_KW = _columns(prompts, branches)
    tokens_BL[branches.rows[:, None], columns_KW[:, :-1]] = torch.from_numpy(branches.words.astype(np.int64))
    rows_R = np.append(np.arange(len(prompts)), branches.rows)
    columns_R = np.append(prompts.lengths, columns_KW[:, -1])
    embeds_BLH = llm.get_input_embeddings()(tokens_BL.to(device))
    none_BH = soft_IH.new_zeros(len(prompts), soft_IH.shape[1])
    embeds_BLH = fill_slots(embeds_BLH, prompts, SoftTokens(none_BH, soft_IH))
    where_R = tuple(torch.from_numpy(part).to(device) for part in (rows_R, columns_R))
    embeds_BLH = embeds_BLH.index_put(where_R, token_H.to(embeds_BLH.dtype).expand(len(rows_R), -1))
    flat_R = where_R[0] * width + where_R[1]
    positions_BL = torch.arange(width).expand(len(prompts), -1)
    if len(branches):
        visible_BLL, positions_BL = _seen(branches, columns_KW, positions_BL)
        return tree_states_at(llm, flat_R, embeds_BLH, visible_BLL.to(device), positions_BL.to(device))
    # Padding is on the right, where causality alone hides it: no mask, and so the fastest attention.
    return states_at(
        llm,
        flat_R,
        inputs_embeds=embeds_BLH,
        attention_mask=torch.ones(embeds_BLH.shape[:2], dtype=torch.int64, device=device),
        position_ids=positions_BL.to(device),
        use_cache=False,
    )


def _columns(prompts: Prompts, branches: Branches) -> np.ndarray:
    """Of the branches' words and readout tokens, int64 (K, W + 1): behind the prompt's own, one after the other."""
    size = len(branches.words) + 1
    within = np.arange(len(branches)) - np.searchsorted(branches.rows, branches.rows)
    return (prompts.lengths[branches.rows] + 1 + size * within)[:, None] + np.arange(size)


def _seen(branches: Branches, columns_KW: np.ndarray, positions_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each token sees, bool (B, L, L), and its position in its text, int64 (B, L)."""
    place_L = torch.arange(positions_BL.shape[1])
    visible_BLL = (place_L[:, None] >= place_L).repeat(len(positions_BL), 1, 1)
    rows_K1, behind_K1 = (torch.from_numpy(part)[:, None] for part in (branches.rows, branches.behind))
    columns = torch.from_numpy(columns_KW)
    own = (place_L >= columns[:, :1, None]) & (place_L <= columns[..., None])
    visible_BLL[rows_K1, columns] = (place_L <= behind_K1[..., None]) | own
    positions_BL = positions_BL.clone()
    positions_BL[rows_K1, columns] = behind_K1 + 1 + torch.arange(columns.shape[1])
    return visible_BLL, positions_BL


def _without_candidates(builder: PromptBuilder, histories: Sequences) -> Prompts:
    return builder.build(histories, np.zeros((len(histories), 0), dtype=np.int32))
