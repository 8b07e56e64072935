"""Prompts from token ids (paper Figure 3): segments and titles are tokenised once, a prompt is their concatenation.

A prompt is a list of *pieces* — fixed segments, titles, slots — and building a batch is one ragged gather from the
bank of pieces. Text never meets text, so no title can make or move a slot. Slots receive soft tokens (x_u and the
items' joint embeddings, projected) through `inputs_embeds`; what is put there is the projectors' business.

The same builder serves Stage-2, ranking and evaluation, so training and inference cannot drift apart.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from allmrec.core.settings import Section
from allmrec.data.sequences import Sequences, offsets_of, ranges

USER_SLOT = 0  # a slot's item when it receives x_u; items are 1 ... n
_BLOCK = 1 << 16  # titles whose tokens are Python's at once
_WHOLE = np.iinfo(np.int32).max  # tokens of a title that is not cut


class PromptConfig(Section):
    """Wording and sizes. "For other datasets, adjust the verbs and nouns to the context" (paper Figure 3)."""

    verb_past: str = "bought"  # "This user has bought ..."
    verb: str = "buy"  # "... for this user to buy next"
    noun: str = "item"  # "... set of item titles"
    user_slot: bool = True  # x_u at the front; false: a row of Table 9
    item_slots: bool = True  # an item's embedding after its title; false: a row of Table 9
    # behind: items' slots behind their titles and the user's in front, as in the paper. before: items' slots before
    # their titles and the user's last: an LLM that looks for an earlier token like the last one, and repeats what
    # followed it, then writes the title of the item whose soft token is like the user's.
    slots: Literal["behind", "before"] = "behind"
    max_history: int = Field(10, ge=0)  # newest items of a user that the prompt shows
    max_title_tokens: int | None = Field(24, ge=1)  # longer titles are cut, in prompts and answers; null: never

    @model_validator(mode="after")
    def _some_slot(self) -> "PromptConfig":
        if not (self.user_slot or self.item_slots):
            raise ValueError(
                "without user_slot and item_slots the prompt is LLM-Only's, which needs no training and is evaluated "
                "in any case, as the system llm-only; leave one of the two on"
            )
        return self


@dataclass(frozen=True)
class Template:
    """A prompt's words: the history follows `opening`, the candidates, if any are listed, follow `question`."""

    opening: str
    question: str
    answer: str  # what the LLM continues


ABOUT_USER, NOTHING = " is a user representation.", " nothing"  # behind the user's slot in front; for no history


def recommendation(config: PromptConfig) -> Template:
    """Which item next (paper Figure 3)?"""
    return Template(
        f" This user has {config.verb_past}",
        f" in the past. Recommend a {config.noun} for this user to {config.verb} next"
        f" from the following set of {config.noun} titles,",
        ". The recommendation is",
    )


@dataclass(frozen=True)
class Titles:
    """Every title's token ids, by item index; entry 0 (padding) is empty."""

    tokens: np.ndarray  # int32 (sum of lengths,)
    offsets: np.ndarray  # int64 (n + 2,)
    group: np.ndarray  # int32 (n + 1,): items with identical tokens share a group

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @classmethod
    def tokenise(cls, titles: pa.Array, tokenizer: Any, max_tokens: int | None) -> "Titles":
        """Tokenise the titles of a `Catalogue` (n + 1 strings, the first one is padding).

        Special tokens spelt out in a title are tokenised as the plain text that they are.

        Args:
            max_tokens: of a title; longer ones are cut. None: none is.
        """
        if max_tokens is not None:
            # A token is at least one byte of text, so what is cut here cannot matter; the slack covers merges.
            titles = pc.utf8_slice_codeunits(titles, 0, 64 * max_tokens)
        blocks = [_tokens(titles.slice(first, _BLOCK), tokenizer) for first in range(1, len(titles), _BLOCK)]
        lengths = np.concatenate([[0], *(lengths for lengths, _ in blocks)])
        tokens = np.concatenate([np.zeros(0, np.int32), *(tokens for _, tokens in blocks)])
        full = Sequences(pa.nulls(len(titles), pa.string()), offsets_of(lengths), tokens)
        cut = full if max_tokens is None else full.shortened(np.minimum(full.lengths, max_tokens))
        return cls(cut.items, cut.offsets, _groups(cut))


@dataclass(frozen=True)
class Prompts:
    """B prompts, ragged."""

    tokens: np.ndarray  # int32 (T,)
    offsets: np.ndarray  # int64 (B + 1,)
    slot_positions: np.ndarray  # int64 (S,), into `tokens`, ascending
    slot_items: np.ndarray  # int32 (S,): USER_SLOT or the item whose soft token goes there
    dropped_history: int = 0  # items left out because a prompt was too long
    cut_titles: int = 0  # prompts whose titles were cut further for the same reason

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def slot_rows(self) -> np.ndarray:
        """int64 (S,): the prompt of each slot."""
        return np.searchsorted(self.offsets, self.slot_positions, side="right") - 1


class PromptBuilder:
    """Builds prompts of one template over one catalogue.

    Args:
        soft: with the config's slots for x_u and the items; without, the text-only prompt of LLM-Only (paper Figure 6).
        max_tokens: of a prompt together with the longest title that it offers and the end token, which are to fit into
            the LLM's positions.
        template: its words; by default those of the recommendation.
    """

    def __init__(
        self,
        config: PromptConfig,
        tokenizer: Any,
        titles: Titles,
        soft: bool,
        max_tokens: int,
        template: Template | None = None,
    ):
        self.config, self.titles, self.soft, self.max_tokens = config, titles, soft, max_tokens
        self.user_slot, self.item_slots = soft and config.user_slot, soft and config.item_slots
        self.slots_first = config.slots == "before"
        self.end = tokenizer.eos_token_id
        words = template or recommendation(config)
        segments = {
            "empty": [],
            "bos": [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else [],
            "slot": [tokenizer.pad_token_id],  # a placeholder: its embedding is replaced
            "intro": _ids(tokenizer, ABOUT_USER * (self.user_slot and not self.slots_first) + words.opening),
            "nothing": _ids(tokenizer, NOTHING),
            "comma": _ids(tokenizer, ","),
            "middle": _ids(tokenizer, words.question),
            "end": _ids(tokenizer, words.answer),
        }
        self._piece = {name: number for number, name in enumerate(segments)}
        self._first_title = len(segments)
        bank = [np.asarray(ids, dtype=np.int32) for ids in segments.values()]
        self._bank = np.concatenate([*bank, titles.tokens])
        lengths = np.concatenate([[len(ids) for ids in bank], titles.lengths])
        self._starts, self._lengths = offsets_of(lengths)[:-1], lengths

    def build(self, history: Sequences, candidates: np.ndarray) -> Prompts:
        """Prompts of B users.

        Args:
            history: B users' items, oldest first; the newest `max_history` are shown.
            candidates: int32 (B, C), in the order shown; zeros (no item) are left out.
        """
        recent = history.last(self.config.max_history)
        piece = self._piece
        shown = candidates > 0
        candidate_rows, candidate_items = np.nonzero(shown)[0], candidates[shown]
        recent, caps = self._fitted(recent, candidates)
        num_history, num_candidates = recent.lengths, shown.sum(axis=1)
        # Pieces of a prompt: bos slot intro nothing | 3 per history item | middle | 3 per candidate | end slot
        counts = 4 + 3 * num_history + 1 + 3 * num_candidates + 2
        base = offsets_of(counts)
        pieces = np.full(base[-1], piece["empty"], dtype=np.int64)
        items = np.full(base[-1], -1, dtype=np.int64)  # the item of a slot
        head, middle = base[:-1], base[:-1] + 4 + 3 * num_history
        pieces[head] = piece["bos"]
        if self.user_slot:
            at = base[1:] - 1 if self.slots_first else head + 1
            pieces[at], items[at] = piece["slot"], USER_SLOT
        pieces[head + 2] = piece["intro"]
        pieces[head + 3] = np.where(num_history == 0, piece["nothing"], piece["empty"])
        pieces[middle] = piece["middle"]
        pieces[base[1:] - 2] = piece["end"]
        cap = np.full(base[-1], _WHOLE, dtype=np.int64)
        for first, rows, listed in (
            (head + 4, recent.rows(), recent.items),
            (middle + 1, candidate_rows, candidate_items),
        ):
            place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # 0, 1, 2, ... within the prompt
            at = first[rows] + 3 * place
            pieces[at] = np.where(place == 0, piece["empty"], piece["comma"])
            title, slot = (at + 2, at + 1) if self.slots_first else (at + 1, at + 2)
            pieces[title], cap[title] = self._first_title + listed, caps[rows]
            if self.item_slots:
                pieces[slot], items[slot] = piece["slot"], listed
        lengths = np.minimum(self._lengths[pieces], cap)
        starts = offsets_of(lengths)
        tokens = self._bank[ranges(self._starts[pieces], lengths)]
        slots = items >= 0
        return Prompts(
            tokens,
            starts[base],
            starts[:-1][slots],
            items[slots].astype(np.int32),
            int(np.minimum(history.lengths, self.config.max_history).sum() - num_history.sum()),
            int((caps < _WHOLE).sum()),
        )

    def answers(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The titles that complete the prompts: flat int32 tokens, each ended by the end token, and lengths (B,)."""
        lengths = self.titles.lengths[items]
        tokens = np.full(int((lengths + 1).sum()), self.end, dtype=np.int32)
        starts = offsets_of(lengths + 1)[:-1]
        tokens[ranges(starts, lengths)] = self.titles.tokens[ranges(self.titles.offsets[items], lengths)]
        return tokens, lengths + 1

    def _fitted(self, recent: Sequences, candidates: np.ndarray) -> tuple[Sequences, np.ndarray]:
        """History with the oldest items dropped until prompts fit, and how long a title may be, int64 (B,)."""
        around = 1 + self.item_slots  # a comma and a slot
        fixed = sum(self._lengths[self._piece[name]] for name in ("bos", "intro", "nothing", "middle", "end")) + 1
        titles = self.titles.lengths[candidates]  # 0 where there is no candidate
        free = self.max_tokens - fixed - titles.max(axis=1, initial=-1) - 1
        room = free - titles.sum(axis=1) - around * (candidates > 0).sum(axis=1)
        costs = self.titles.lengths[recent.items] + around
        # Tokens of an item and all newer ones: the suffix sum within its row.
        total = np.concatenate([[0], np.cumsum(costs)])
        suffix = total[recent.offsets[1:]][recent.rows()] - total[:-1]
        fits = suffix <= room[recent.rows()]
        kept = np.bincount(recent.rows(), weights=fits, minlength=len(recent)).astype(np.int64)
        dropped = Sequences(recent.user_ids, offsets_of(kept), recent.items[ranges(recent.offsets[1:] - kept, kept)])
        num_candidates = np.maximum((candidates > 0).sum(axis=1), 1)
        cap = free // num_candidates - around
        if (cap[room < 0] < 1).any():
            raise ValueError(
                f"a prompt of {int(num_candidates.max())} candidates does not fit into {self.max_tokens} tokens with "
                f"an answer of up to {int(titles.max(initial=0)) + 1}, however titles in it are cut; lower "
                "nightly.num_candidates or evaluation.num_negatives, or prompt.max_title_tokens"
            )
        return dropped, np.where(room < 0, cap, _WHOLE)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def _groups(titles: Sequences) -> np.ndarray:
    """int32 (N,): equal for rows of equal tokens."""
    offsets, tokens = (pa.py_buffer(np.ascontiguousarray(part)) for part in (4 * titles.offsets, titles.items))
    spelt = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(titles), [None, offsets, tokens])
    return spelt.dictionary_encode().indices.to_numpy().astype(np.int32)


def _tokens(titles: pa.Array, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens each title has, int64 (M,), and the tokens of all, int32."""
    texts = [f" {title}" for title in titles.to_pylist()]
    ids = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    lists = pa.array(ids, pa.list_(pa.int32()))
    return np.diff(lists.offsets.to_numpy()), lists.flatten().to_numpy()
