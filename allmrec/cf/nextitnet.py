"""NextItNet (Yuan et al. 2019): causal dilated convolutions over a user's items.

Knows the forward pass alone; losses, negatives and the loop are in `training`. Sections of that paper are beside
the lines. Its last layer scores every item with weights of its own; here those are E_i, so that an item's score is a
dot product.

Dimensions: B users, T positions, N = n + 1 items (0 is padding), D = dim
"""

import torch
from torch import nn
from torch.nn import functional as F

from allmrec.cf.teacher import SequenceTeacher, TeacherConfig, draw_tables

_KERNEL = 3  # positions that a convolution reads


class Convolution(nn.Module):
    """A causal dilated convolution, layer norm, ReLU (section 3.2)."""

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.kernel = nn.Linear(_KERNEL * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        # One product of matrices over the position itself and those `dilation` and twice that before it.
        length = x_BTD.shape[1]
        padded = F.pad(x_BTD, (0, 0, (_KERNEL - 1) * self.dilation, 0))
        taps = [padded[:, tap * self.dilation :][:, :length] for tap in range(_KERNEL)]
        return F.relu(self.norm(self.kernel(torch.cat(taps, -1))))


class Block(nn.Module):
    """Two convolutions, the second twice as dilated, and what they read (section 3.3, figure 3b)."""

    def __init__(self, dim: int, dilation: int):
        super().__init__()
        self.first = Convolution(dim, dilation)
        self.second = Convolution(dim, 2 * dilation)

    def forward(self, x_BTD: torch.Tensor, real_BT1: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.second(self.first(x_BTD) * real_BT1) * real_BT1


class NextItNet(SequenceTeacher):
    """x^u is the last position's output of a stack of residual blocks."""

    def __init__(self, config: TeacherConfig, num_items: int):
        super().__init__(config, num_items)
        self.blocks = nn.ModuleList(Block(config.dim, 4**depth) for depth in range(config.blocks))  # 1, 2, 4, 8, …
        self.out = nn.Linear(config.dim, config.dim)
        draw_tables(self.items)

    def forward(self, history_BT: torch.Tensor) -> torch.Tensor:
        real_BT1 = (history_BT > 0)[..., None]  # biases would fill padding, and later positions would read it
        x_BTD = self.dropout(self.items(history_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD, real_BT1)
        return self.out(self.dropout(x_BTD)) * real_BT1
