"""The four losses of Stage-1 (paper equations 2 to 5) and their sum (equation 6).

They run over rows: a target of a user and one unseen item make two rows, each with the user's representation. The
expectation over a user's items is the sum over the rows by their weights, which sum to 1 for every user; that over
users is the division by their number, which is left to callers, for they have a batch's share alone.

The paper sums equation 5 over users and targets; here it is the mean, as in equations 2 to 4, so that the balance of
the terms depends neither on the batch size nor on the length of sequences. Equation 5 as printed names the positive
item twice; the second term is for the negative item, as its text says.

Dimensions: R rows, D = teacher.dim, S = dimensions of the text encoder, J = joint dimensions d'
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork


@dataclass(frozen=True)
class Losses:
    """Weighted sums over rows, so that workers' shares can be added; divide by the users of the whole batch."""

    matching: torch.Tensor
    item_recon: torch.Tensor
    text_recon: torch.Tensor
    rec: torch.Tensor

    def total(self, config: AlignmentConfig) -> torch.Tensor:
        """Equation 6, of those losses that `config.losses` names."""
        weights = {"matching": 1.0, "item_recon": config.alpha, "text_recon": config.beta, "rec": 1.0}
        return torch.stack([weights[name] * getattr(self, name) for name in config.losses]).sum()


def stage1_losses(
    network: AlignmentNetwork,
    items_RD: torch.Tensor,
    texts_RS: torch.Tensor,
    x_RD: torch.Tensor,
    positive_R: torch.Tensor,
    weight_R: torch.Tensor,
) -> Losses:
    """
    Args:
        items_RD, texts_RS: E_i and Q_i of the rows' items.
        x_RD: x^u of the rows' users, before the positive item.
        positive_R: bool, whether the row's item is the user's own.
        weight_R: of the row among those of its user.
    """
    item_RD, text_RS = network.standard_items(items_RD), network.standard_texts(texts_RS)
    e_RJ, q_RJ = network.item_encoder(item_RD), network.text_encoder(text_RS)
    item_back_RD = network.item_decoder(e_RJ)
    logit_R = (x_RD * network.original_items(item_back_RD)).sum(1)  # s(x^u, f_I^dec(f_I^enc(E_i)))
    rec_R = F.binary_cross_entropy_with_logits(logit_R, positive_R.to(logit_R.dtype), reduction="none")
    return Losses(
        matching=weight_R @ (e_RJ - q_RJ).square().mean(1),  # eq. 2
        item_recon=weight_R @ (item_RD - item_back_RD).square().mean(1),  # eq. 3
        text_recon=weight_R @ (text_RS - network.text_decoder(q_RJ)).square().mean(1),  # eq. 4
        rec=2 * weight_R @ rec_R,  # eq. 5: -log sigmoid(s) and -log(1 - sigmoid(s)); two rows make a target
    )
