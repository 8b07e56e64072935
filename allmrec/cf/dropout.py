"""Dropout whose masks do not depend on the number of workers.

Masks are drawn for the whole global batch, from torch's global generator, and every worker takes its rows, as
`allmrec.core.distributed.local_shard` divides them. A byte decides on an element, eight to a draw: torch's own dropout
takes a draw an element, which on CPUs costs more than the model's arithmetic.

Dimensions: B rows of this worker, G rows of the global batch
"""

import math

import torch
from torch import nn

from allmrec.core.distributed import rank_and_world_size


class Masks:
    """How large the global batch is; a model's dropouts share one, and who trains the model sets it at every step."""

    rows: int  # G

    def draw(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """Random bytes, uint8 (B, *shape), of this worker's rows."""
        rank, world = rank_and_world_size()
        words = math.ceil(self.rows * math.prod(shape) / 8)
        drawn = torch.randint(-(2**63), 2**63 - 1, (words,), device=device).view(torch.uint8)
        return drawn[: self.rows * math.prod(shape)].view(self.rows, *shape)[rank::world]


class Dropout(nn.Module):
    """Zeroes elements of (B, ...) with the nearest probability to `rate` that is a multiple of 1/256, in training."""

    def __init__(self, rate: float, masks: Masks):
        super().__init__()
        self.kept = 256 - round(256 * rate)
        self.masks = masks

    def forward(self, x_B: torch.Tensor) -> torch.Tensor:
        if not self.training or self.kept == 256:
            return x_B
        mask_B = self.masks.draw(x_B.shape[1:], x_B.device) < self.kept
        return x_B * (mask_B * (256 / self.kept))
