"""Users' histories as texts, and what a frozen text encoder makes of them (CTRL, section 4.1).

Dimensions: U users, S of the text encoder
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.data.sequences import Sequences
from allmrec.text.encoder import TextConfig, TextEncoder

_BLOCK = 4096  # users encoded at once


@dataclass(frozen=True)
class HistoryTexts:
    """Histories → their texts' embeddings, by an encoder that is loaded when it is called."""

    titles: pa.Array  # large_string, by item index
    verb: str  # in the past tense, `prompt.verb_past`
    max_items: int
    config: TextConfig
    device: str = "cpu"

    def texts(self, histories: Sequences) -> pa.Array:
        """ "A user who has recently watched a|b|c", the newest first: what the encoder cuts off is the oldest.

        Returns:
            large_string (U,).
        """
        recent = histories.last(self.max_items).newest_first()
        titles = pa.LargeListArray.from_arrays(pa.array(recent.offsets), self.titles.take(pa.array(recent.items)))
        said = (f"A user who has recently {self.verb}", "|", " ")
        before, between, space = (pa.scalar(text, pa.large_string()) for text in said)
        return pc.binary_join_element_wise(before, pc.binary_join(titles, between), space)

    def __call__(self, histories: Sequences) -> np.ndarray:
        """float32 (U, S)."""
        encoder, texts = TextEncoder(self.config, self.device), self.texts(histories)
        blocks = [self._encode(encoder, texts.slice(first, _BLOCK)) for first in range(0, len(texts), _BLOCK)]
        return np.concatenate(blocks) if blocks else np.zeros((0, encoder.encoder.get_embedding_dimension()), "f4")

    @staticmethod
    def _encode(encoder: Any, texts: pa.Array) -> np.ndarray:
        lists = encoder(pa.table({"text": texts})).column("embedding").combine_chunks()
        vectors_US: np.ndarray = lists.flatten().to_numpy().reshape(len(texts), -1)
        return vectors_US
