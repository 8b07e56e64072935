"""O_i = F_I(e_i) of the items that prompts show, projected when they are shown (paper equation 7).

Those of a whole catalogue are N x H numbers: 164 GB for ten million items in an LLM of 4,096 dimensions.

Dimensions: N = n + 1 items (0 is padding), S items that are shown, J joint embedding, H token dimension
"""

import torch
from torch import nn

from allmrec.core.rows import Table

_BLOCK = 1024  # items that are projected at once; always as many, so that no item's numbers depend on the others


class ItemTokens:
    """Soft tokens by item index: `tokens[items_S]` is (S, H), on the device of `items_S`, which is the projector's."""

    def __init__(self, projector: nn.Module, inputs_NJ: Table):
        """
        Args:
            inputs_NJ: what F_I projects, on the CPU.
        """
        self.projector, self.inputs_NJ = projector, inputs_NJ

    def __getitem__(self, items_S: torch.Tensor) -> torch.Tensor:
        items, at_S = items_S.unique(return_inverse=True)
        rows = torch.zeros(-(-len(items) // _BLOCK) * _BLOCK, dtype=torch.int64)
        rows[: len(items)] = items
        inputs_RJ = self.inputs_NJ[rows].to(items_S.device)
        return torch.cat([self.projector(block_RJ) for block_RJ in inputs_RJ.split(_BLOCK)])[at_S]
