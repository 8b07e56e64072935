"""Greedy decoding behind prompts: free text, and titles under the constraint of the candidate trie.

The paper lets the LLM write the next item's title (section 4.2.2); ranking reads the same choice off one forward pass
(`allmrec.llm.ranking`). Decoding stays for text that no trie foresees, and to compare. A batch keeps its keys and
values from step to step, and prompts whose text has ended leave it. Works with any causal LM of transformers.

Padding is on the left: new tokens are then neighbours of the prompts that they follow, in sliding windows too.
"""

from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from allmrec.data.sequences import ranges
from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens, take, token_budget_batches
from allmrec.llm.forward import logits_at
from allmrec.llm.prompt import Prompts, Titles
from allmrec.llm.trie import ROOT, Tries, build_tries

# B prompts, R of them that continue, T tokens, C candidates, H token dimension, V vocabulary


class Generator:
    """Decodes greedily with a frozen LLM.

    Attributes:
        tokens, padding: real and padding tokens read so far, those generated among them.
        passes: forward passes so far.
    """

    def __init__(self, llm: nn.Module, end: int, tokens_per_batch: int):
        """
        Args:
            end: the token that ends a text; also the placeholder where a batch is padded.
            tokens_per_batch: padded tokens of the prompts of one batch.
        """
        self.llm, self.end, self.tokens_per_batch = llm, end, tokens_per_batch
        self.tokens = self.padding = self.passes = 0

    def free(self, prompts: Prompts, soft: SoftTokens | None, max_new_tokens: int) -> list[list[int]]:
        """Each prompt's text as tokens, without the end token and cut at `max_new_tokens`.

        Raises:
            ValueError: the LLM gave NaN or inf.
        """
        texts: list[list[int]] = [[]] * len(prompts)
        for rows in token_budget_batches(prompts.lengths, self.tokens_per_batch):
            written = _FreeText(len(rows), self.end, max_new_tokens)
            self._decode(take(prompts, rows), soft and soft.of(rows), written)
            for row, text in zip(rows.tolist(), written.tokens_BT.tolist(), strict=True):
                texts[row] = text[: text.index(self.end)]
        return texts

    def constrained(
        self, prompts: Prompts, soft: SoftTokens | None, titles: Titles, candidates: np.ndarray
    ) -> np.ndarray:
        """Which candidate each prompt's text names, when every token must continue towards one of them.

        Args:
            candidates: int32 (B, C) into `titles`; zeros are no candidates.

        Returns:
            bool (B, C): one candidate, or all that have its very title; none in a row without candidates.

        Raises:
            ValueError: the LLM gave NaN or inf.
        """
        named = np.zeros(candidates.shape, dtype=bool)
        for rows in token_budget_batches(prompts.lengths, self.tokens_per_batch):
            walk = _Walk(build_tries(titles, candidates[rows], self.end))
            self._decode(take(prompts, rows), soft and soft.of(rows), walk)
            named[rows] = walk.named()
        return named

    @torch.inference_mode()
    def _decode(self, prompts: Prompts, soft: SoftTokens | None, text: "_Text") -> None:
        from transformers import DynamicCache

        llm: Any = self.llm
        embedding = llm.get_input_embeddings()
        embeds_RTH, mask_RT = left_padded(llm, prompts, soft, self.end)
        position_RT = (mask_RT.cumsum(dim=1) - 1).clamp(min=0)
        self.tokens += len(prompts.tokens)
        self.padding += mask_RT.numel() - len(prompts.tokens)
        cache, going = DynamicCache(config=llm.config), np.arange(len(prompts))
        while True:
            last_R = torch.arange(1, len(going) + 1, device=mask_RT.device) * embeds_RTH.shape[1] - 1
            logits_RV = logits_at(
                llm,
                last_R,
                inputs_embeds=embeds_RTH,
                attention_mask=mask_RT,
                position_ids=position_RT,
                past_key_values=cache,
                use_cache=True,
            )
            self.passes += 1
            if not logits_RV.isfinite().all():
                raise ValueError("the LLM gave NaN or inf while it decoded; check the training of its soft tokens")
            token_R, goes_on_R = text.extend(going, logits_RV)
            if not goes_on_R.any():
                return
            stay = torch.from_numpy(np.flatnonzero(goes_on_R)).to(mask_RT.device)
            if len(stay) < len(going):
                cache.batch_select_indices(stay)
                going, mask_RT, position_RT = going[goes_on_R], mask_RT[stay], position_RT[stay]
            embeds_RTH = embedding(torch.from_numpy(token_R[goes_on_R]).to(mask_RT.device))[:, None]
            mask_RT = torch.cat([mask_RT, mask_RT.new_ones(len(stay), 1)], dim=1)
            position_RT = position_RT[:, -1:] + 1
            self.tokens += len(stay)


def left_padded(llm: Any, prompts: Prompts, soft: SoftTokens | None, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (B, T, H) of the prompts, which end in the last column, and a mask (B, T), 1 at a prompt's tokens."""
    embedding = llm.get_input_embeddings()
    device, width = embedding.weight.device, int(prompts.lengths.max())
    embeds_BTH = embedding(padded_tokens(prompts, width, padding).to(device))
    if soft is not None:
        embeds_BTH = fill_slots(embeds_BTH, prompts, soft)
    place_BT = torch.arange(width) - torch.from_numpy(width - prompts.lengths)[:, None]
    rows_B1 = torch.arange(len(prompts), device=device)[:, None]
    return embeds_BTH[rows_B1, (place_BT % width).to(device)], (place_BT >= 0).long().to(device)


def named_by_text(texts: list[list[int]], tokenizer: Any, titles: Titles, candidates: np.ndarray) -> np.ndarray:
    """Which candidates free texts name by their exact title (normalised, a line), bool (B, C); mostly one, or none.

    Args:
        texts: tokens of B texts.
        candidates: int32 (B, C) into `titles`; zeros are no candidates.
    """
    items, item_BC = np.unique(candidates, return_inverse=True)
    starts, stops = titles.offsets[items].tolist(), titles.offsets[items + 1].tolist()
    shown = [titles.tokens[start:stop] for start, stop in zip(starts, stops, strict=True)]
    known = normalised(first_lines(tokenizer.batch_decode(shown, skip_special_tokens=True)))
    distinct = known.unique()
    group_I = pc.index_in(known, value_set=distinct).to_numpy(zero_copy_only=False)
    written = normalised(first_lines(tokenizer.batch_decode(texts, skip_special_tokens=True)))
    group_B = pc.fill_null(pc.index_in(written, value_set=distinct), -1).to_numpy(zero_copy_only=False)
    return (group_I[item_BC.reshape(candidates.shape)] == group_B[:, None]) & (candidates > 0)


def first_lines(texts: list[str]) -> pa.Array:
    """Up to the first line break behind some text."""
    return pc.replace_substring_regex(pc.utf8_trim_whitespace(pa.array(texts, pa.string())), r"(?s)\n.*", "")


def normalised(texts: pa.Array) -> pa.Array:
    """For comparing: in one Unicode form and case, spaces alike, without quotes and full stops around it."""
    one_form = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
    return pc.utf8_trim(pc.replace_substring_regex(one_form, r"\s+", " "), " \"'.“”")


class _Text(Protocol):
    """What decoding writes."""

    def extend(self, rows: np.ndarray, logits_RV: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The next token of the given rows, int64 (R,), and whether they continue after it, bool (R,)."""
        ...


class _FreeText:
    def __init__(self, count: int, end: int, max_new_tokens: int):
        self.end, self.step, self.max_new_tokens = end, 0, max_new_tokens
        self.tokens_BT = np.full((count, max_new_tokens + 1), end, dtype=np.int64)

    def extend(self, rows: np.ndarray, logits_RV: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        token_R = logits_RV.argmax(dim=1).cpu().numpy()
        self.tokens_BT[rows, self.step] = token_R
        self.step += 1
        return token_R, (token_R != self.end) & (self.step < self.max_new_tokens)


class _Walk:
    """Walks down the candidate tries. A place is a prompt (0 ... B - 1, its trie's root) or B + an inner node."""

    def __init__(self, tries: Tries):
        self.tries, count = tries, len(tries.title_multiplicity)
        self.place_B = np.arange(count)
        self.edge_B = np.full(count, -1)  # the last choice made

        def key(parent: np.ndarray, row: np.ndarray, token: np.ndarray) -> np.ndarray:
            return np.where(parent == ROOT, row, count + parent) << 32 | token

        edge_key = key(tries.edge_parent, tries.edge_row, tries.edge_token)
        node_key = key(tries.node_parent, tries.node_row, tries.node_token)
        self.edges, self.nodes = _Lookup(edge_key), _Lookup(node_key)
        # Tokens that may follow a place: the choices at it, or the only way on.
        moves = np.unique(np.concatenate([edge_key, node_key]))
        self.move_token = moves & (2**32 - 1)
        self.first_move = np.searchsorted(moves >> 32, np.arange(count + len(node_key) + 1))

    def extend(self, rows: np.ndarray, logits_RV: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        place_R = self.place_B[rows]
        count_R = self.first_move[place_R + 1] - self.first_move[place_R]
        row_M = torch.from_numpy(np.repeat(np.arange(len(rows)), count_R)).to(logits_RV.device)
        token_M = torch.from_numpy(self.move_token[ranges(self.first_move[place_R], count_R)]).to(logits_RV.device)
        allowed_RV = torch.full_like(logits_RV, -torch.inf)
        allowed_RV[row_M, token_M] = logits_RV[row_M, token_M]
        token_R = allowed_RV.argmax(dim=1).cpu().numpy()
        key_R = place_R << 32 | token_R
        edge_R, node_R = self.edges(key_R), self.nodes(key_R)
        self.edge_B[rows] = np.where(edge_R >= 0, edge_R, self.edge_B[rows])
        self.place_B[rows] = len(self.place_B) + node_R
        return token_R, node_R >= 0

    def named(self) -> np.ndarray:
        """bool (B, C): the candidates whose last choice was taken."""
        last_C = np.full(self.tries.title_multiplicity.size, -1)
        # Deeper choices of a candidate come later, and the last of equal indices stays.
        last_C[self.tries.path_candidate] = self.tries.path_edge
        last_BC = last_C.reshape(self.tries.title_multiplicity.shape)
        return (last_BC == self.edge_B[:, None]) & (self.tries.title_multiplicity > 0)


class _Lookup:
    """Positions of distinct keys; -1 for those that are not there."""

    def __init__(self, keys: np.ndarray):
        self.order = np.argsort(keys)
        self.keys = keys[self.order]

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        if not len(self.keys):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where(self.keys[at] == wanted, self.order[at], -1)
