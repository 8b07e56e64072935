"""A worker's place among the others, in terms of `torch.distributed`; one process without a group is a world of one.

The batch of a step is global: each worker takes its slice, losses are divided by the global batch's size and
gradients are summed, so the number of workers changes nothing but the order of floating point additions.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import distributed as dist


def place() -> tuple[int, int]:
    """(rank, number of workers)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own(rows: np.ndarray) -> np.ndarray:
    """This worker's share of the global batch's rows: every world-size-th of them."""
    rank, world = place()
    return rows[rank::world]


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the workers' tensors, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace every gradient by the sum over the workers: one all-reduce for all of them."""
    if not dist.is_initialized():
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = summed(torch.cat([gradient.flatten() for gradient in gradients]))
    for parameter, part in zip(parameters, flat.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.view_as(parameter)
