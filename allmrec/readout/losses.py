"""LLM-SRec's losses over a whole batch (Kim et al. 2025, equations 1 to 4), and two that learn faster from a teacher.

All of them are means over the batch's users. Knows vectors, and neither where they come from nor how gradients travel.

Dimensions: B users, I distinct items of the step, V readout dim
"""

import torch
from torch.nn import functional as F

from allmrec.readout.network import ReadoutConfig


def readout_loss(
    config: ReadoutConfig,
    users_BV: torch.Tensor,
    mapped_BV: torch.Tensor,
    items_IV: torch.Tensor,
    target_B: torch.Tensor,
    competes_BI: torch.Tensor,
    scores_BI: torch.Tensor,
) -> torch.Tensor:
    """The sum of the config's losses, ().

    Args:
        mapped_BV: f_CF-user(x^u), the map of the teacher's vectors.
        target_B: int64, which of the items each user came to.
        competes_BI: bool, the items among which it is to be found; the target is one.
        scores_BI: the teacher's.
    """
    unit_BV, mapped_unit_BV = F.normalize(users_BV, dim=1), F.normalize(mapped_BV, dim=1)

    def log_p(vectors_BV: torch.Tensor) -> torch.Tensor:
        logits_BI = vectors_BV @ items_IV.T / (config.temperature or 1.0)
        return logits_BI.masked_fill(~competes_BI, -torch.inf).log_softmax(1)

    total = users_BV.new_zeros(())
    if "retrieval" in config.losses:  # equation 1
        total = total + F.nll_loss(log_p(users_BV), target_B)
    if "distil" in config.losses:  # equation 2
        total = total + config.distil_weight * (unit_BV - mapped_unit_BV).square().sum(1).mean()
    if "uniform" in config.losses:  # equation 3
        total = total + uniformity(unit_BV) + uniformity(mapped_unit_BV)
    if "teacher-map" in config.losses:
        total = total + F.nll_loss(log_p(mapped_BV), target_B)
    if "teacher-scores" in config.losses:
        wanted_BI = scores_BI.masked_fill(~competes_BI, -torch.inf).log_softmax(1)
        # Where nothing competes both are -inf, and the term is zero.
        found_BI, wanted_BI = (log.masked_fill(~competes_BI, 0.0) for log in (log_p(users_BV), wanted_BI))
        total = total + (wanted_BI.exp() * competes_BI * (wanted_BI - found_BI)).sum(1).mean()
    return total


def uniformity(unit_BV: torch.Tensor) -> torch.Tensor:
    """Mean over pairs of exp(-2 |a - b|^2) (Wang & Isola 2020); zero without a pair."""
    return torch.exp(-2 * torch.pdist(unit_BV).square()).sum() / max(len(unit_BV) * (len(unit_BV) - 1) / 2, 1)
