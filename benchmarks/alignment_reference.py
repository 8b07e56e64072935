"""Stage-1 as paper section 4.1 describes it, plainly: what `benchmarks.alignment` measures our training against.

A batch's positive items and then its negative ones go through SBERT, every text of them, tokenised anew and padded to
the longest as they come. Equations of the paper stand beside the lines. Inputs are standardised and equation 5 is a
mean as in our training, so that losses can be compared; shares nothing else with it. Sampling is left out: batches are
given.

Dimensions: B users of a batch, N = n + 1 items, D = teacher.dim, S of texts, J of the joint embeddings
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

NAMES = ("matching", "item_recon", "text_recon", "rec")


class ReferenceTraining:
    def __init__(
        self,
        encoder: Any,
        texts: list[str],
        items_ND: torch.Tensor,
        weights: Mapping[str, torch.Tensor],
        learning_rate: float,
        alpha: float,
        beta: float,
        tuned: bool,
    ):
        """
        Args:
            encoder: a SentenceTransformer; `tuned` says whether it is trained along.
            texts: by item index.
            weights: of f_I, f_T and their decoders at the start, and what inputs are standardised by.
        """
        self.encoder, self.texts, self.items_ND, self.alpha, self.beta = encoder, texts, items_ND, alpha, beta
        self.item_mean, self.item_scale = weights["item_mean"], weights["item_scale"]
        self.text_mean, self.text_scale = weights["text_mean"], weights["text_scale"]
        self.item_encoder, self.item_decoder, self.text_encoder, self.text_decoder = (
            _linear(weights, name) for name in ("item_encoder.0", "item_decoder", "text_encoder.0", "text_decoder")
        )
        self.encoder.eval().requires_grad_(tuned)
        layers = (self.item_encoder, self.item_decoder, self.text_encoder, self.text_decoder, self.encoder)
        trained = [weight for layer in layers for weight in layer.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=learning_rate)
        self.read = self.padded = 0  # tokens, without and with padding

    def step(self, x_BD: torch.Tensor, positives: list[int], negatives: list[int]) -> dict[str, float]:
        """One step; the losses before it, means over the users."""
        losses = {name: torch.zeros(()) for name in NAMES}
        for items, target in ((positives, 1.0), (negatives, 0.0)):
            item_BD = (self.items_ND[items] - self.item_mean) / self.item_scale
            text_BS = (self.embedded([self.texts[item] for item in items]) - self.text_mean) / self.text_scale
            e_BJ, q_BJ = F.gelu(self.item_encoder(item_BD)), F.gelu(self.text_encoder(text_BS))
            item_back_BD = self.item_decoder(e_BJ)
            losses["matching"] += F.mse_loss(e_BJ, q_BJ) / 2  # equation 2, over a user's two items
            losses["item_recon"] += F.mse_loss(item_back_BD, item_BD) / 2  # equation 3
            losses["text_recon"] += F.mse_loss(self.text_decoder(q_BJ), text_BS) / 2  # equation 4
            score_B = (x_BD * (item_back_BD * self.item_scale + self.item_mean)).sum(1)
            losses["rec"] += F.binary_cross_entropy_with_logits(score_B, torch.full_like(score_B, target))  # equation 5
        total = losses["matching"] + self.alpha * losses["item_recon"]
        total = total + self.beta * losses["text_recon"] + losses["rec"]  # equation 6
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        return {name: loss.item() for name, loss in losses.items()}

    def embedded(self, texts: list[str]) -> torch.Tensor:
        """Q of texts: (B, S)."""
        features = self.encoder.preprocess(texts)
        ids, mask = features["input_ids"], features.get("attention_mask")
        self.read += ids.numel() if mask is None else int(mask.sum())
        self.padded += ids.numel()
        return self.encoder(features)["sentence_embedding"]


def _linear(weights: Mapping[str, torch.Tensor], name: str) -> nn.Linear:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
