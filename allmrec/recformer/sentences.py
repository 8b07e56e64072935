"""Items as sentences of keys and values, and histories as the sentences of their items (Recformer, section 2.2.1).

Texts are tokenised once; everything after that is arrays. Special tokens spelt out in a text are tokenised as the
plain text that they are. A *word* of a sentence is a token and its kind in one number, `KINDS * token + kind`; 0 is no
word, for only [CLS] is of the kind 0.

Dimensions: N = n + 1 items (0 is padding), M of some items, L words of the longest sentence, I items of all histories,
B histories, T tokens of the longest
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional as F

from allmrec.core.rows import Rows, Table, shared
from allmrec.data.catalogue import UNTITLED, display_titles
from allmrec.data.sequences import Sequences, offsets_of

WORDS = ("title", "categories", "description")  # columns of `items`
CLS, KEY, VALUE = range(3)  # kinds of words
KINDS = 3
_CHARS = 64  # of a text per token: what follows is cut anyway
_BLOCK = 1 << 16  # texts held as Python objects at once
_TOKENS = pa.list_(pa.int32())


@dataclass(frozen=True)
class Texts:
    """B histories as an encoder reads them: [CLS], then the items' sentences, the newest item first."""

    words_BT: np.ndarray  # int64, zeros behind
    recency_BT: np.ndarray  # int64: 1 for the newest item; 0 for [CLS]
    lengths: np.ndarray  # int64 (B,)


@dataclass(frozen=True)
class Sentences:
    """Every item's sentence, and how histories are made of them."""

    words_NL: Rows  # int32; zeros behind, and for padding
    cls: int  # the token
    max_items: int  # newest items of a history that are read
    max_tokens: int  # of a history; what is cut off is the oldest

    def take(self, rows_N: torch.Tensor, new_NL: Table | None = None) -> "Sentences":
        """Of other items: those of the given rows, and new ones where the row is 0."""
        words_NL = self.words_NL.take(rows_N)
        if new_NL is not None:
            new = Rows.of(new_NL)
            width = max(words_NL.shape[1], new.shape[1])
            words_NL = _widened(new, width).where(rows_N == 0, _widened(words_NL, width))
        return replace(self, words_NL=words_NL)

    def lengths(self, histories: Sequences) -> np.ndarray:
        """Tokens of each history's text, int64 (B,)."""
        recent = histories.last(self.max_items)
        words = np.append(0, (self._of(recent.items) > 0).sum(1).cumsum())
        return np.minimum(1 + np.diff(words[recent.offsets]), self.max_tokens)

    def texts(self, histories: Sequences) -> Texts:
        recent = histories.last(self.max_items).newest_first()
        words_IL = self._of(recent.items)
        words_I = (words_IL > 0).sum(1)
        starts = offsets_of(words_I)[recent.offsets]  # of each history's words, one after another
        recency_I = np.arange(len(recent.items)) - recent.offsets[recent.rows()] + 1
        row = np.repeat(recent.rows(), words_I)
        column = np.arange(len(row)) - starts[row] + 1
        kept = column < self.max_tokens
        lengths = np.minimum(1 + np.diff(starts), self.max_tokens)
        words_BT, recency_BT = np.zeros((2, len(recent), int(lengths.max(initial=1))), dtype=np.int64)
        words_BT[:, 0] = KINDS * self.cls + CLS
        words_BT[row[kept], column[kept]] = words_IL[words_IL > 0][kept]
        recency_BT[row[kept], column[kept]] = np.repeat(recency_I, words_I)[kept]
        return Texts(words_BT, recency_BT, lengths)

    def _of(self, items_I: np.ndarray) -> np.ndarray:
        words_IL: np.ndarray = self.words_NL[torch.from_numpy(items_I)].numpy()
        return words_IL


def alone(items: np.ndarray) -> Sequences:
    """Each item as a history of one item, from which its vector is computed."""
    return Sequences(pa.nulls(len(items), pa.string()), np.arange(len(items) + 1), items.astype(np.int32))


def attributes(items: pa.Table) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """The keys of sentences with every item's value, large_string, "" where it has none; of a table with WORDS."""
    yield "title", display_titles(items.column("title"))
    for key, texts in (
        ("category", pc.binary_join(items.column("categories"), " ")),
        ("description", items.column("description")),
    ):
        yield key, pc.fill_null(texts.cast(pa.large_string()), "")


def spaced(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Texts behind a space, large_string: as words of a sentence are tokenised."""
    before, nothing = (pa.scalar(text, pa.large_string()) for text in (" ", ""))
    return pc.binary_join_element_wise(before, texts, nothing)


def check_texts(parts: Iterable[pa.Table]) -> None:
    """Raises ValueError if no item has a text for its sentence. Args: parts: of a table, with WORDS."""
    nothing = {"title": UNTITLED}
    values = ((key, texts) for part in parts for key, texts in attributes(part))
    if all(pc.all(pc.equal(texts, nothing.get(key, ""))).as_py() for key, texts in values):
        raise ValueError(
            "baselines.recformer reads titles, categories and descriptions, and no item has one; name their columns in "
            "data.items.columns, or leave recformer out of baselines"
        )


def catalogue_words(parts: Iterable[pa.Table], tokenizer: Any, max_attribute_tokens: int) -> Rows:
    """All items' sentences, int32 (N, L), of which a machine holds a large table once.

    Args:
        parts: of a table with WORDS, in the order of item_index. No two are held at once.
    """
    found = [torch.zeros(1, 1, dtype=torch.int32)]  # padding has no words
    found += [torch.from_numpy(item_words(part, tokenizer, max_attribute_tokens)) for part in parts]
    width = max(words_ML.shape[1] for words_ML in found)
    for number, words_ML in enumerate(found):
        found[number] = F.pad(words_ML, (0, width - words_ML.shape[1]))
    return Rows.of(shared(Rows(tuple(found))))


def item_words(items: pa.Table, tokenizer: Any, max_attribute_tokens: int) -> np.ndarray:
    """The sentences of some items, int32 (M, L): each attribute that an item has, as its key and its value."""
    parts = []
    for key, texts in attributes(items):
        key_1K = _tokens(tokenizer, pa.chunked_array([[f" {key}"]]), max_attribute_tokens) * KINDS + KEY
        values = spaced(pc.utf8_slice_codeunits(texts, 0, _CHARS * max_attribute_tokens))
        token_MV = _tokens(tokenizer, values, max_attribute_tokens)
        there_MV = token_MV >= 0
        there_MV &= np.asarray(pc.not_equal(texts, ""))[:, None]  # a tokenizer may make a token of the space alone
        parts += [key_1K * there_MV.any(1, keepdims=True), (token_MV * KINDS + VALUE) * there_MV]
    words_ML = np.concatenate(parts, axis=1)
    words_ML = np.take_along_axis(words_ML, np.argsort(words_ML == 0, axis=1, kind="stable"), axis=1)
    return words_ML[:, : max(1, int((words_ML > 0).sum(1).max(initial=0)))]


def _widened(words: Rows, width: int) -> Rows:
    if words.shape[1] == width:
        return words
    return Rows(tuple(F.pad(part, (0, width - part.shape[1])) for part in words.parts), words.at_N)


def _tokens(tokenizer: Any, texts: pa.ChunkedArray, longest: int) -> np.ndarray:
    """Tokens of texts cut to the longest, int32 (M, V); -1 behind them."""
    lists = pa.concat_arrays([pa.array([], _TOKENS), *_token_lists(tokenizer, texts, longest)])
    lengths = np.diff(lists.offsets.to_numpy())
    tokens_MV = np.full((len(texts), int(lengths.max(initial=0))), -1, dtype=np.int32)
    row = np.repeat(np.arange(len(texts)), lengths)
    tokens_MV[row, np.arange(len(row)) - lists.offsets.to_numpy()[row]] = lists.flatten().to_numpy()
    return tokens_MV


def _token_lists(tokenizer: Any, texts: pa.ChunkedArray, longest: int) -> Iterator[pa.Array]:
    for first in range(0, len(texts), _BLOCK):
        block = texts.slice(first, _BLOCK).to_pylist()
        found = tokenizer.encode_batch_fast(block, add_special_tokens=False)
        yield pa.array([encoding.ids[:longest] for encoding in found], _TOKENS)
