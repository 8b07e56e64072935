"""GRU4Rec (Hidasi et al. 2016): a gated recurrent network over a user's items.

Knows the forward pass alone; losses, negatives and the loop are in `training`. Sections of that paper are beside
the lines. Its output layer scores items with weights of their own; here those are E_i, so that a score is a dot
product.

Dimensions: B users, T positions, N = n + 1 items (0 is padding), D = dim, H = 2 D units of the GRU
"""

import torch
from torch import nn

from allmrec.cf.teacher import SequenceTeacher, TeacherConfig, draw_tables


class GRU4Rec(SequenceTeacher):
    """x^u is a projection of the GRU's state after the newest item (section 3.1, figure 1)."""

    def __init__(self, config: TeacherConfig, num_items: int):
        super().__init__(config, num_items)
        self.gru = nn.GRU(config.dim, 2 * config.dim, config.blocks, batch_first=True)  # section 3, equations 2 to 5
        self.out = nn.Linear(2 * config.dim, config.dim)
        draw_tables(self.items)

    def forward(self, history_BT: torch.Tensor) -> torch.Tensor:
        # Biases would move the state on padding before the first item. So each row is turned until its padding is
        # last, where it changes nothing, and the states are turned back.
        length = history_BT.shape[1]
        real_BT = history_BT > 0
        count_B1 = real_BT.sum(1, keepdim=True)
        position_T = torch.arange(length, device=history_BT.device)
        turned_BT = history_BT.gather(1, (position_T - count_B1) % length)
        state_BTH, _ = self.gru(self.dropout(self.items(turned_BT)))
        x_BTD = self.out(self.dropout(state_BTH))
        back_BT1 = ((position_T + count_B1) % length)[..., None]
        return x_BTD.take_along_dim(back_BT1, 1) * real_BT[..., None]
