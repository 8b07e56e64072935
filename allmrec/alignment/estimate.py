"""How long Stage-1 takes, for a plan, before anything is loaded.

With frozen texts a step is the network's, which is timed on this host; a fine-tuned SBERT decides the time, and reads
as fast as `embed` did. Not in it: x^u of the users, and the exchange of gradients.

Dimensions: R rows of a worker, D, S as in `network`
"""

import math
import time

import torch

from allmrec.alignment.losses import stage1_losses
from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork

_STEPS = 10  # timed, of which the fastest counts
_PASSES = 3  # a forward and a backward pass, in forward passes


def steps_per_epoch(config: AlignmentConfig, users: int) -> int:
    return math.ceil(users / config.batch_size)


def hours_of_steps(
    config: AlignmentConfig, item_dim: int, text_dim: int, users: int, targets: int, world: int
) -> float:
    """Of all steps with frozen texts, at this host's speed; every target comes with an unseen item."""
    rows = max(1, round(2 * config.batch_size * targets / max(users, 1) / world))
    return config.epochs * steps_per_epoch(config, users) * _step_seconds(config, item_dim, text_dim, rows) / 3600


def hours_of_texts(config: AlignmentConfig, targets: int, world: int, items_per_s: float) -> float:
    """Of a fine-tuned SBERT, which reads the texts of each target and of its unseen item.

    Args:
        items_per_s: texts that a worker of `embed` has read in a second.
    """
    return _PASSES * 2 * targets * config.epochs / (items_per_s * world) / 3600


def _step_seconds(config: AlignmentConfig, item_dim: int, text_dim: int, rows: int) -> float:
    network = AlignmentNetwork(item_dim, text_dim, config.joint_dim, config.activation)
    optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True)
    items_RD, texts_RS, weight_R = torch.ones(rows, item_dim), torch.ones(rows, text_dim), torch.ones(rows)
    positive_R, seconds = torch.arange(rows) % 2 == 0, []
    for _ in range(_STEPS):
        started = time.perf_counter()
        optimiser.zero_grad()
        losses = stage1_losses(network, items_RD, texts_RS, items_RD, positive_R, weight_R)
        losses.total(config, config.batch_size).backward()
        optimiser.step()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
