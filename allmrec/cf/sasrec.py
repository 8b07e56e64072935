"""SASRec (Kang & McAuley 2018): causal self-attention over a user's items.

Knows the forward pass alone; losses, negatives and the loop are in `training`. Sections of that paper are
beside the lines. Positions are counted from the newest item, so that a batch may be cut to its longest history.

Dimensions: B users, T positions, N = n + 1 items (0 is padding), D = dim, H heads, K = D / H
"""

import torch
from torch import nn
from torch.nn import functional as F

from allmrec.cf.dropout import Dropout, Masks
from allmrec.cf.teacher import SequenceTeacher, TeacherConfig


class Block(nn.Module):
    """Self-attention and a point-wise feed-forward network, each as x + dropout(g(layernorm(x))) (section III-B)."""

    def __init__(self, config: TeacherConfig, masks: Masks):
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.dropout = Dropout(config.dropout, masks)
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.forward_norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, dim)
        self.back = nn.Linear(dim, dim)

    def forward(self, x_BTD: torch.Tensor, mask_B1TT: torch.Tensor) -> torch.Tensor:
        qkv_3BHTK = self.qkv(self.attention_norm(x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv_3BHTK
        mixed_BHTK = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B1TT)
        x_BTD = x_BTD + self.dropout(self.out(mixed_BHTK.transpose(1, 2).flatten(2)))
        hidden_BTD = self.dropout(F.relu(self.hidden(self.forward_norm(x_BTD))))
        return x_BTD + self.dropout(self.back(hidden_BTD))


class SASRec(SequenceTeacher):
    """x^u is the hidden state at the newest item; an item's score is its dot product with E_i (section III-D)."""

    def __init__(self, config: TeacherConfig, num_items: int):
        super().__init__(config, num_items)
        self.positions = nn.Embedding(config.max_history, config.dim)  # 0 is the newest
        self.blocks = nn.ModuleList(Block(config, self.masks) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0] = 0

    def forward(self, history_BT: torch.Tensor) -> torch.Tensor:
        length = history_BT.shape[1]
        real_BT = history_BT > 0
        position_T = torch.arange(length - 1, -1, -1, device=history_BT.device)
        x_BTD = self.dropout(self.items(history_BT) + self.positions(position_T))
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=history_BT.device).tril()
        itself_TT = torch.eye(length, dtype=torch.bool, device=history_BT.device)  # padding needs one key too
        mask_B1TT = ((causal_TT & real_BT[:, None, :]) | itself_TT)[:, None]
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_B1TT)
        return self.norm(x_BTD) * real_BT[..., None]
