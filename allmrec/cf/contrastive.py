"""CTRL's alignment of users with the texts of their histories: two maps, a similarity and its loss.

Li et al., "CTRL: Connect Collaborative and Language Model for CTR Prediction" (TORS 2025), section 4.2. Knows vectors
alone; where they come from, and the loop, are `pretraining`'s business.

Dimensions: B users, K texts, M subspaces, P = dim of a subspace, D = teacher.dim, S of the text encoder
"""

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from allmrec.core.settings import Section


class PretrainingConfig(Section):
    """CTRL's first stage: users' representations are aligned with the texts of their histories."""

    epochs: int = Field(10, ge=0)  # of the first stage; 0: none
    batch_size: int = Field(256, ge=2)  # users per step, over all workers: each is told apart from all others
    learning_rate: float = Field(0.0005, gt=0)  # of AdamW, after a warm-up of 100 steps
    temperature: float = Field(0.7, gt=0)  # that similarities are divided by
    subspaces: int = Field(3, ge=1)  # vectors of a user and of a text, each of which is compared with each
    dim: int = Field(128, ge=1)  # of these vectors


class ContrastiveHeads(nn.Module):
    """Linear maps of x^u and of a text embedding to one dimension, and from there into subspaces (section 4.2.2)."""

    def __init__(self, config: PretrainingConfig, user_dim: int, text_dim: int):
        super().__init__()
        self.subspaces, wide = config.subspaces, config.subspaces * config.dim
        self.user, self.text = (
            nn.Sequential(nn.Linear(dim, config.dim), nn.Linear(config.dim, wide)) for dim in (user_dim, text_dim)
        )

    def users(self, x_BD: torch.Tensor) -> torch.Tensor:
        """(B, M, P)"""
        return self.user(x_BD).unflatten(-1, (self.subspaces, -1))

    def texts(self, texts_BS: torch.Tensor) -> torch.Tensor:
        """(B, M, P)"""
        return self.text(texts_BS).unflatten(-1, (self.subspaces, -1))


def max_sim(queries_BMP: torch.Tensor, keys_KMP: torch.Tensor) -> torch.Tensor:
    """For each pair the sum over the query's vectors of the greatest product with one of the key's: (B, K)."""
    flat_LP = keys_KMP.flatten(0, 1)
    products = ((query_BP @ flat_LP.T).unflatten(1, keys_KMP.shape[:2]) for query_BP in queries_BMP.unbind(1))
    return torch.stack([product_BKM.amax(-1) for product_BKM in products]).sum(0)


def contrastive_loss(users_BMP: torch.Tensor, texts_BMP: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean of finding each user's text among those of the batch, and each text's user (InfoNCE, equation 8)."""
    own_B = torch.arange(len(users_BMP), device=users_BMP.device)
    pairs = ((users_BMP, texts_BMP), (texts_BMP, users_BMP))
    losses = [F.cross_entropy(max_sim(queries, keys) / temperature, own_B) for queries, keys in pairs]
    return torch.stack(losses).mean()
