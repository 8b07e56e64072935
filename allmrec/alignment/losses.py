"""The four losses of Stage-1 (paper equations 2 to 5) and their sum (equation 6).

They run over rows: a target of a user and one unseen item make two rows, each with the user's representation. What a
row weighs in equations 2 to 4 is the business of `examples`. A batch takes the place of the set S of users; the
expectation over them is a division by their number in `total`, for a worker has a share of the batch alone. Equation 5
is a sum, as printed, so it outweighs the others by as much as a batch is large.

Equation 5 as printed names the positive item twice; the second term is for the negative item, as its text says. In
equation 4 Q_i is what is to be reconstructed, and no gradient reaches SBERT through that side: an SBERT that moved
towards its own reconstruction would make all texts alike. Equation 3's E_i is frozen; both sides of equation 2 learn.

Dimensions: R rows, M of them in equations 2 to 4, D = teacher.dim, S = dimensions of the text encoder, J = d'
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from allmrec.alignment.network import AlignmentConfig, AlignmentNetwork


@dataclass(frozen=True)
class Losses:
    """Weighted sums over rows, so that workers' shares can be added."""

    matching: torch.Tensor
    item_recon: torch.Tensor
    text_recon: torch.Tensor
    rec: torch.Tensor

    def total(self, config: AlignmentConfig, num_users: int) -> torch.Tensor:
        """Equation 6, of those losses that `config.losses` names, in a batch that has `num_users` over all workers."""
        weights = {"matching": 1.0, "item_recon": config.alpha, "text_recon": config.beta}
        weights = {name: weight / num_users for name, weight in weights.items()} | {"rec": 1.0}
        return torch.stack([weights[name] * getattr(self, name) for name in config.losses]).sum()


def stage1_losses(
    network: AlignmentNetwork,
    items_RD: torch.Tensor,
    texts_MS: torch.Tensor,
    x_RD: torch.Tensor,
    positive_R: torch.Tensor,
    weight_R: torch.Tensor,
) -> Losses:
    """
    Args:
        items_RD: E_i of the rows' items.
        texts_MS: Q_i of the items of those rows that weigh something in equations 2 to 4.
        x_RD: x^u of the rows' users, before the positive item.
        positive_R: bool, whether the row's item is the user's own.
        weight_R: of the rows in equations 2 to 4.
    """
    item_RD, text_MS = network.standard_items(items_RD), network.standard_texts(texts_MS)
    e_RJ, q_MJ = network.item_encoder(item_RD), network.text_encoder(text_MS)
    item_back_RD = network.item_decoder(e_RJ)
    logit_R = (x_RD * network.original_items(item_back_RD)).sum(1)  # s(x^u, f_I^dec(f_I^enc(E_i)))
    rec_R = F.binary_cross_entropy_with_logits(logit_R, positive_R.to(logit_R.dtype), reduction="none")
    matched_R = weight_R > 0
    weight_M = weight_R[matched_R]
    return Losses(
        matching=weight_M @ _mse(e_RJ[matched_R], q_MJ),  # eq. 2
        item_recon=weight_M @ _mse(item_RD, item_back_RD)[matched_R],  # eq. 3
        text_recon=weight_M @ _mse(text_MS.detach(), network.text_decoder(q_MJ)),  # eq. 4
        rec=rec_R.sum(),  # eq. 5: -log sigmoid(s) and -log(1 - sigmoid(s)); two rows make a target
    )


def _mse(one_RD: torch.Tensor, other_RD: torch.Tensor) -> torch.Tensor:
    return (one_RD - other_RD).square().mean(1)
