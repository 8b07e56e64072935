"""Where Stage-1 takes the text embeddings Q_i of a batch's rows from.

`FrozenTexts` looks them up: they were computed beforehand. `TrainedTexts` is SBERT itself, fine-tuned along (paper
section 4.1). The catalogue is tokenised once, file by file, and its tokens are mapped. Each text of a batch is encoded
once, whichever items and rows have it, together with texts of similar length so that little is padding; and by one
worker only, which takes all rows of the text. SBERT runs without dropout: the equations take Q_i as a function of the
text, and masks would differ with the number of workers.

Dimensions: N = n + 1 items (0 is padding), D different texts of theirs, R rows, L texts of a batch, S = dimensions of
the text encoder
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from allmrec.alignment.network import AlignmentConfig
from allmrec.core.distributed import local_shard, rank_and_world_size
from allmrec.core.rows import GrowingTable
from allmrec.core.storage import Storage
from allmrec.data.catalogue import item_texts, parts_in_order
from allmrec.data.sequences import offsets_of, ranges
from allmrec.text.encoder import default_prompt

_BLOCK = 1024  # texts tokenised at once


class FrozenTexts(nn.Module):
    """Q of the catalogue; nothing of it is trained, nor part of a checkpoint."""

    texts_NS: torch.Tensor

    def __init__(self, texts_NS: torch.Tensor):
        super().__init__()
        self.register_buffer("texts_NS", texts_NS, persistent=False)

    def own(self, items_R: np.ndarray) -> np.ndarray:
        """Positions of this worker's rows among those of the global batch."""
        return local_shard(np.arange(len(items_R)))

    def forward(self, items_R: np.ndarray) -> torch.Tensor:
        return self.texts_NS[torch.from_numpy(items_R).long().to(self.texts_NS.device)]


@dataclass(frozen=True)
class DistinctTexts:
    """Which text each item has, and every text once."""

    text_N: np.ndarray  # int, of D
    parts: Iterable[pa.Array]  # the D texts, some at a time; there is one, and they may come only once

    @classmethod
    def of(cls, texts_N: pa.Array) -> "DistinctTexts":
        """Of the items; entry 0 is padding's."""
        encoded = texts_N.dictionary_encode()
        return cls(encoded.indices.to_numpy(), [encoded.dictionary])

    @classmethod
    def read(cls, items: Storage) -> "DistinctTexts":
        """Of the stored `items` table, a file of whose texts is held at a time; padding's is the first one, ""."""
        hashes = [part.column("text_hash").cast(pa.large_string()) for part in parts_in_order(items, ["text_hash"])]
        encoded = pa.chunked_array([chunk for part in hashes for chunk in part.chunks]).combine_chunks()
        text_I = encoded.dictionary_encode().indices.to_numpy()
        first_D = np.unique(text_I, return_index=True)[1]  # ascends: numbers are given as texts come
        return cls(np.append(0, 1 + text_I), cls._parts(items, first_D))

    @staticmethod
    def _parts(items: Storage, first_D: np.ndarray) -> Iterator[pa.Array]:
        yield pa.array([""], pa.large_string())
        for part in parts_in_order(items, ["title", "description"]):
            row = part.column("item_index").to_numpy() - 1
            here = pa.array(np.isin(row, first_D, assume_unique=True))
            yield from item_texts(part.column("title"), part.column("description")).filter(here).chunks


class TrainedTexts(nn.Module):
    """SBERT, and the catalogue's texts as its tokens."""

    def __init__(self, config: AlignmentConfig, encoder: Any, texts: DistinctTexts, max_chars: int):
        """
        Args:
            encoder: a SentenceTransformer (`load_encoder`), in float32.
            max_chars: texts are cut there, as `TextEncoder` does.
        """
        super().__init__()
        self.config, self.encoder = config, encoder.eval()
        for module in encoder.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = True  # else every pass would fill and add a gradient of the whole vocabulary's size
        self.text_N = texts.text_N
        cut = (pc.utf8_slice_codeunits(part, 0, max_chars) for part in texts.parts)
        self.tokens, self.lengths, self.constants, self.pads = _tokenised(encoder, cut)
        self.offsets = offsets_of(self.lengths)
        self.read = self.padded = 0  # tokens that this worker has encoded, without and with padding

    def own(self, items_R: np.ndarray) -> np.ndarray:
        """Positions of this worker's rows among those of the global batch: those of its share of the texts."""
        texts = np.unique(self.text_N[items_R])
        rank, world = rank_and_world_size()
        # Longest first, assigned back and forth, so that workers read equally much.
        turn = np.arange(len(texts)) % (2 * world)
        mine = texts[np.argsort(-self.lengths[texts], kind="stable")[np.minimum(turn, 2 * world - 1 - turn) == rank]]
        return np.flatnonzero(np.isin(self.text_N[items_R], mine))

    def forward(self, items_R: np.ndarray) -> torch.Tensor:
        """Q of the rows' items, float32 (R, S), with the graph back to SBERT's weights."""
        texts_L, text_R = np.unique(self.text_N[items_R], return_inverse=True)
        order = np.argsort(self.lengths[texts_L], kind="stable")
        place_R = np.argsort(order)[text_R]
        if not len(order):
            return torch.zeros(0, self.encoder.get_embedding_dimension(), device=self.encoder.device)
        embedded_LS = torch.cat([self._encode(texts) for texts in self._passes(texts_L[order])])
        return embedded_LS[torch.from_numpy(place_R).to(embedded_LS.device)]

    def _passes(self, texts_L: np.ndarray) -> Iterator[np.ndarray]:
        """The texts, shortest first, in passes: each as large as its padding allows."""
        while len(texts_L):
            lengths = self.lengths[texts_L[: self.config.texts_per_pass]]
            padded = lengths * np.arange(1, len(lengths) + 1)  # with the first one, the first two, …
            too_long = np.flatnonzero(lengths.cumsum() < (1 - self.config.max_padding) * padded)
            size = int(too_long[0]) if len(too_long) else len(lengths)
            yield texts_L[:size]
            texts_L = texts_L[size:]

    def _encode(self, texts: np.ndarray) -> torch.Tensor:
        features = self._features(texts)
        self.read += int(self.lengths[texts].sum())
        self.padded += features["input_ids"].numel()
        if self.config.gradient_checkpointing:
            return checkpoint(self._embedding, features, use_reentrant=False)
        return self._embedding(features)

    def _features(self, texts: np.ndarray) -> dict[str, Any]:
        """What the encoder's first module reads: padded tokens, or tokens one text behind the other."""
        positions, lengths = ranges(self.offsets[texts], self.lengths[texts]), self.lengths[texts]
        tokens = {name: column[positions].astype(np.int64) for name, column in self.tokens.items()}
        if not self.pads:
            features = {name: torch.from_numpy(column) for name, column in tokens.items()}
            return self.constants | features | {"offsets": torch.from_numpy(offsets_of(lengths)[:-1])}
        cuts = np.cumsum(lengths)[:-1]
        lists = {name: [text.tolist() for text in np.split(column, cuts)] for name, column in tokens.items()}
        return self.constants | dict(self.encoder.tokenizer.pad(lists, return_tensors="pt"))

    def _embedding(self, features: dict[str, Any]) -> torch.Tensor:
        device = self.encoder.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            features = {
                name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()
            }
            return self.encoder(features)["sentence_embedding"][:, : self.encoder.truncate_dim].float()


def make_dense(weights: Iterable[torch.Tensor]) -> None:
    """Turn the sparse gradients that the passes have left into what Adam and the all-reduce between workers take."""
    for weight in weights:
        if weight.grad is not None and weight.grad.is_sparse:
            weight.grad = weight.grad.to_dense()


def _tokenised(
    encoder: Any, parts: Iterable[pa.Array]
) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, Any], bool]:
    """The texts as `encode` reads them, behind the encoder's prompt.

    Returns:
        What the encoder reads of each token (int32: its id, its type where types differ), one text behind the other;
        how many tokens each text has; what it reads besides, alike for all texts; and whether it wants texts padded.

    Raises:
        ValueError: the encoder reads something else of texts.
    """
    columns, told, lengths, pads, constants = dict[str, GrowingTable](), {"input_ids"}, [], False, {}
    for block in (part.slice(first, _BLOCK) for part in parts for first in range(0, len(part), _BLOCK)):
        features = encoder.preprocess(block.to_pylist(), prompt=default_prompt(encoder))
        tensors = {name: value.numpy() for name, value in features.items() if isinstance(value, torch.Tensor)}
        constants = {name: value for name, value in features.items() if name not in tensors}
        ids, pads = tensors["input_ids"], "attention_mask" in tensors
        if pads:
            real = tensors.pop("attention_mask").astype(bool)
            lengths.append(real.sum(axis=1))
        else:
            real = np.ones(ids.shape, dtype=bool)
            lengths.append(np.diff(tensors.pop("offsets"), append=len(ids)))
        other = [name for name, tensor in tensors.items() if tensor.shape != ids.shape]
        if other:
            raise ValueError(
                f"this text encoder reads {other} of a text beside its tokens; leave it as it is, with "
                "alignment.text_encoder: frozen, or fine-tune another"
            )
        for name, tensor in tensors.items():
            columns.setdefault(name, GrowingTable()).append(torch.from_numpy(tensor[real].astype(np.int32)))
            told |= {name} if tensor[real].any() else set()
    # Types that are all 0 are what an encoder takes for granted.
    tokens = {name: column.table().numpy() for name, column in columns.items() if name in told}
    return tokens, np.concatenate(lengths), constants, pads
