"""NCF (He et al. 2017), as their NeuMF: a matrix factorisation (GMF) and a perceptron (MLP) side by side.

Not sequential. Their user is an embedding by id, which a user must have been trained for. Here, as in FISM (Kabbur et
al. 2013), it is the mean of a second embedding of the history's items: a user that training never saw is represented
as well as any other, and a new interaction needs no training. Equations of He et al. are beside the lines.

Dimensions: B users, T positions, C candidates, K items shared by all rows, N = n + 1 items (0 is padding), D = dim,
G = M = D / 2 for GMF and MLP, H of the MLP's hidden layers
"""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from allmrec.cf.teacher import SequenceTeacher, TeacherConfig, draw_tables

_TILE = 2**16  # pairs of a row and an item that the MLP holds at once


class NCF(SequenceTeacher):
    """E_i and x^u are vectors for GMF and for MLP side by side; an item's score is a network of both (figure 3)."""

    def __init__(self, config: TeacherConfig, num_items: int):
        super().__init__(config, num_items)
        dim, half = config.dim, config.dim // 2
        if dim % 2 or not dim >> (config.blocks - 1):
            raise ValueError(
                f"teacher.dim is {dim}; NCF gives half to GMF and half to MLP, whose {config.blocks} layers halve it: "
                f"make it even and at least {2 ** max(config.blocks - 1, 1)}"
            )
        self.read = nn.Embedding(num_items + 1, dim, padding_idx=0)  # items as parts of a history
        widths = [dim >> layer for layer in range(config.blocks)]  # the tower of section 4.1 (their 32, 16, 8)
        # W_1 of [x_m ; e_m] by its halves: W_1 [x_m ; e_m] = W_x x_m + W_e e_m needs no product for every pair.
        self.from_user = nn.Linear(half, widths[0])
        self.from_item = nn.Linear(half, widths[0], bias=False)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.h_G = nn.Parameter(torch.ones(half))  # h of equation 12 by its halves; ones are a matrix factorisation
        self.h_H = nn.Parameter(torch.empty(widths[-1]).uniform_(-1, 1) / widths[-1] ** 0.5)
        draw_tables(self.items, self.read)

    def forward(self, history_BT: torch.Tensor) -> torch.Tensor:
        count_BT1 = (history_BT > 0).cumsum(1)[..., None]
        return self.read(history_BT).cumsum(1) / count_BT1.clamp(min=1)

    def contexts(self, items_BT: torch.Tensor) -> torch.Tensor:
        """Each item is predicted from all other items of the user, earlier or later, and never from itself (FISM)."""
        others_BST = (items_BT[:, None] != items_BT[:, 1:, None]) & (items_BT > 0)[:, None]
        weights_BST = others_BST / others_BST.sum(-1, keepdim=True).clamp(min=1)
        return weights_BST @ self.dropout(self.read(items_BT))

    def scores(self, x_BD: torch.Tensor, items_BC: torch.Tensor) -> torch.Tensor:
        return self._score(x_BD, self.items(items_BC))

    def shared_scores(self, x_BD: torch.Tensor, items_K: torch.Tensor | None = None) -> torch.Tensor:
        """In tiles of _TILE pairs. Where gradients are wanted, all hidden layers stay: about 2 D floats a pair."""
        e_KD = self.items.weight if items_K is None else self.items(items_K)
        columns = e_KD.split(_TILE)
        rows = x_BD.split(max(1, _TILE // len(columns[0])))
        return torch.cat([torch.cat([self._score(x_BD, e_KD) for e_KD in columns], 1) for x_BD in rows])

    def _score(self, x_BD: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """Equation 12 without its sigmoid, (B, C), of items e: (C, D) the same for all rows, (B, C, D) their own."""
        (x_BG, x_BM), (e_G, e_M) = x_BD.chunk(2, -1), e.chunk(2, -1)
        gmf_B1C = (x_BG * self.h_G)[:, None] @ e_G.mT
        hidden_BCH = F.relu(self.from_user(x_BM)[:, None] + self.from_item(e_M))
        for layer in self.layers:
            hidden_BCH = F.relu(layer(hidden_BCH))
        return gmf_B1C[:, 0] + hidden_BCH @ self.h_H
