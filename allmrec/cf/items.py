"""Items that a teacher knows by their texts: E_i = f(Q_i) in the place of a vector of its own for every item.

MoRec (Yuan et al. 2023, "Where to Go Next for Recommender Systems? ID- vs. Modality-based Recommender Models
Revisited"), whose text encoder is frozen here: f alone is trained. An item is as well known with one interaction as
with a thousand, and a new one needs its text alone. Knows the map; who trains it is `training`'s business.

Dimensions: N = n + 1 items (0 is padding), K distinct items, R rows, S of the text encoder, D = teacher.dim
"""

import torch
from torch import nn
from torch.nn import functional as F

_BLOCK = 1 << 16  # texts that are mapped at once


class TextItems(nn.Embedding):
    """A table of items that is made of their texts, and is made again whenever training ends or pauses (`eval`).

    In training a step says which items it reads, and their texts are mapped once. Otherwise, and wherever it is loaded,
    this is an ordinary table, and f is beside it for texts that come later.
    """

    items_K: torch.Tensor  # of the step, ascending
    e_KD: torch.Tensor
    texts_NS: torch.Tensor | None
    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, table: nn.Embedding, text_dim: int, layers: int):
        """
        Args:
            table: whose place it takes, with its numbers of items and of dimensions.
            layers: linear layers of f, with a GELU between two of them.
        """
        super().__init__(table.num_embeddings, table.embedding_dim, padding_idx=0)
        self.weight.requires_grad_(False)
        first = nn.Linear(text_dim, table.embedding_dim)
        # Texts are as long as a one-hot vector, so this layer begins as a table does and takes the same steps.
        nn.init.normal_(first.weight, std=0.02)
        nn.init.zeros_(first.bias)
        self.text = nn.Sequential(first)
        for _ in range(layers - 1):
            self.text.extend([nn.GELU(), nn.Linear(table.embedding_dim, table.embedding_dim)])
        self.register_buffer("mean", torch.zeros(text_dim))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("texts_NS", None, persistent=False)

    def read(self, texts_NS: torch.Tensor) -> None:
        """Take Q of the catalogue to train on: centred, and divided by the root mean square of its lengths."""
        self.mean = texts_NS[1:].mean(0)
        self.scale = (texts_NS[1:] - self.mean).square().sum(1).mean().sqrt().clamp(min=1e-6)
        self.texts_NS = self._standard(texts_NS)

    def embed(self, texts_RS: torch.Tensor) -> torch.Tensor:
        """f(Q) of any texts of the same encoder: (R, D)."""
        return self.text(self._standard(texts_RS))

    def begin_step(self, items: torch.Tensor) -> None:
        """Map the texts of all items that a training step reads; padding may be among them."""
        assert self.texts_NS is not None, "it trains on the texts that it has read"
        self.items_K = items.unique()
        self.e_KD = self.text(self.texts_NS[self.items_K]).float() * (self.items_K > 0)[:, None]

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(items)
        return F.embedding(torch.searchsorted(self.items_K, items.contiguous()), self.e_KD)

    def train(self, mode: bool = True) -> "TextItems":
        super().train(mode)
        if not mode and self.texts_NS is not None:
            self._make_table(self.texts_NS)
        return self

    @torch.no_grad()
    def _make_table(self, texts_NS: torch.Tensor) -> None:
        self.weight.copy_(torch.cat([self.text(part_RS) for part_RS in texts_NS.split(_BLOCK)]))
        self.weight[0] = 0

    def _standard(self, texts_RS: torch.Tensor) -> torch.Tensor:
        return (texts_RS - self.mean) / self.scale
