"""The four losses of Stage-1 (paper equations 2 to 5) and their sum (equation 6).

They run over rows: a user's last item and one negative item make two rows, each with the user's representation.
The paper sums equation 5 over users; here it is the mean, as in equations 2 to 4, so that the balance of the terms
does not depend on the batch size. Equation 5 as printed names the positive item twice; the second term is for the
negative item, as its text says.

Dimensions: R rows, D = teacher.dim, S = dimensions of the text encoder, J = joint dimensions d'
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from allmrec.alignment.network import AlignmentNetwork


@dataclass(frozen=True)
class Losses:
    """Sums over rows, so that workers' shares can be added; divide by the rows of the whole batch."""

    matching: torch.Tensor
    item_recon: torch.Tensor
    text_recon: torch.Tensor
    rec: torch.Tensor

    def total(self, alpha: float, beta: float) -> torch.Tensor:
        return self.matching + alpha * self.item_recon + beta * self.text_recon + self.rec  # eq. 6


def stage1_losses(
    network: AlignmentNetwork,
    items_RD: torch.Tensor,
    texts_RS: torch.Tensor,
    x_RD: torch.Tensor,
    positive_R: torch.Tensor,
) -> Losses:
    """
    Args:
        items_RD, texts_RS: E_i and Q_i of the rows' items.
        x_RD: x^u of the rows' users, before the positive item.
        positive_R: bool, whether the row's item is the user's own.
    """
    item_RD, text_RS = network.standard_items(items_RD), network.standard_texts(texts_RS)
    e_RJ, q_RJ = network.item_encoder(item_RD), network.text_encoder(text_RS)
    item_back_RD = network.item_decoder(e_RJ)
    logit_R = (x_RD * network.original_items(item_back_RD)).sum(1)  # s(x^u, f_I^dec(f_I^enc(E_i)))
    return Losses(
        matching=(e_RJ - q_RJ).square().mean(1).sum(),  # eq. 2
        item_recon=(item_RD - item_back_RD).square().mean(1).sum(),  # eq. 3
        text_recon=(text_RS - network.text_decoder(q_RJ)).square().mean(1).sum(),  # eq. 4
        # eq. 5: -log sigmoid(s) and -log(1 - sigmoid(s)); two rows make a user
        rec=2 * F.binary_cross_entropy_with_logits(logit_R, positive_R.to(logit_R.dtype), reduction="sum"),
    )
