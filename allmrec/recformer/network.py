"""RECFORMER's network: an encoder that gets each token's kind and the recency of its item (section 2.2.2).

E_w = LayerNorm(A_token + B_position + C_kind + D_item): the sum of token, kind and item goes to the encoder, which
adds position and applies LayerNorm. The state of [CLS] represents a history, and an item as a history of itself.

Dimensions: B histories, T tokens of the longest, H of the token embeddings, D of the states
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from allmrec.core.rows import by_rows
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import token_budget_batches
from allmrec.recformer.encoder import first_states
from allmrec.recformer.sentences import KINDS, Sentences, Texts, alone


class Recformer(nn.Module):
    """An encoder and the embeddings of kinds and of items' recency; without dropout, in training too."""

    def __init__(self, encoder: Any, max_items: int, seed: int = 0):
        super().__init__()
        self.encoder = encoder
        dim = encoder.get_input_embeddings().embedding_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.kinds, self.recency = nn.Embedding(KINDS, dim), nn.Embedding(max_items + 1, dim)
            for table in (self.kinds, self.recency):
                nn.init.normal_(table.weight, std=encoder.config.initializer_range)
        self.eval()

    @property
    def dim(self) -> int:
        """D."""
        return int(self.encoder.config.hidden_size)

    def forward(self, texts: Texts) -> torch.Tensor:
        """Vectors of unit length, float32 (B, D): their products are cosines."""
        device = self.kinds.weight.device
        word_BT, recency_BT, length_B = (
            torch.from_numpy(part).to(device) for part in (texts.words_BT, texts.recency_BT, texts.lengths)
        )
        mask_BT = (torch.arange(word_BT.shape[1], device=device) < length_B[:, None]).long()
        tokens_BTH = self.encoder.get_input_embeddings()(word_BT // KINDS)
        embeds_BTH = tokens_BTH + self.kinds(word_BT % KINDS) + self.recency(recency_BT)
        return F.normalize(first_states(self.encoder, embeds_BTH, mask_BT).float(), dim=1)


@torch.no_grad()
def read(network: Recformer, sentences: Sentences, histories: Sequences, tokens_per_pass: int) -> torch.Tensor:
    """Vectors of histories with at least one item, (B, D), in passes of at most that many padded tokens."""
    found_BD = torch.zeros(len(histories), network.dim, device=network.kinds.weight.device)
    for rows in token_budget_batches(sentences.lengths(histories), tokens_per_pass):
        found_BD[torch.from_numpy(rows)] = network(sentences.texts(histories.take(rows)))
    return found_BD


def read_items(network: Recformer, sentences: Sentences, items: np.ndarray, tokens_per_pass: int) -> torch.Tensor:
    """Vectors of items (indices), (M, D); a part of them at a time."""
    return by_rows(lambda part: read(network, sentences, alone(part.numpy()), tokens_per_pass), torch.from_numpy(items))
