"""A worker's place among the others, in terms of `torch.distributed`; one process without a group is a world of one.

The batch of a step is global: each worker takes its slice, losses are divided by the global batch's size and
gradients are summed, so the number of workers changes nothing but the order of floating point additions.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import distributed as dist


def rank_and_world_size() -> tuple[int, int]:
    """(rank, number of workers)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def local_shard(rows: np.ndarray) -> np.ndarray:
    """This worker's share of the global batch's rows: every world-size-th of them."""
    rank, world = rank_and_world_size()
    return rows[rank::world]


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the workers' tensors, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def whole_batch(rows_RD: torch.Tensor, rows: np.ndarray, size: int) -> torch.Tensor:
    """What the workers made of the rows of a global batch, together on each: a leaf that takes gradients, (size, D).

    For losses that couple all rows. Gradients of the leaf are the loss's by each row's output; what a worker then sends
    backwards is `(rows_RD * leaf.grad[rows]).sum()`.

    Args:
        rows_RD: this worker's outputs.
        rows: their places in the batch, int64 (R,); every place is some worker's, once.
    """
    whole = rows_RD.new_zeros(size, *rows_RD.shape[1:])
    whole[torch.from_numpy(rows).to(whole.device)] = rows_RD.detach()
    return all_reduce_sum(whole).requires_grad_()


def all_reduce_min(number: int) -> int:
    """The least of the workers' numbers."""
    return -all_reduce_max(-number)


def all_reduce_max(number: int) -> int:
    """The greatest of the workers' numbers."""
    if not dist.is_initialized():
        return number
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found = torch.tensor(number, dtype=torch.int64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def sum_gradients(
    parameters: Iterable[torch.Tensor],
    tables: Iterable[torch.Tensor] = (),
    rows: torch.Tensor | None = None,
) -> None:
    """Replace every gradient by the sum over the workers: one all-reduce for all of them.

    Args:
        tables: embedding tables, of whose gradients `rows` alone (by default all) differ from zero on any worker; so
            what travels does not grow with the table.
    """
    if not dist.is_initialized():
        return
    parameters, tables = list(parameters), list(tables)
    where = slice(None) if rows is None else rows
    gradients = [_gradient(parameter) for parameter in parameters] + [_gradient(table)[where] for table in tables]
    flat = all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)]
    for parameter, part in zip(parameters, parts, strict=False):
        parameter.grad = part
    for table, part in zip(tables, parts[len(parameters) :], strict=True):
        _gradient(table)[where] = part


def _gradient(parameter: torch.Tensor) -> torch.Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
