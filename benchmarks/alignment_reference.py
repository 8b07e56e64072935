"""Stage-1 as paper section 4.1 describes it, plainly: what `benchmarks.alignment` measures our training against.

What `alignment.preset: paper` means, equations beside the lines; shares nothing with our training. The texts of a
batch's positive items go through SBERT, every one of them, tokenised again and padded to the longest as they come.
Sampling is left out: batches are given.

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
            weights: of f_I, f_T and their decoders at the start.
        """
        self.encoder, self.texts, self.items_ND, self.alpha, self.beta = encoder, texts, items_ND, alpha, beta
        self.item_encoder, self.item_decoder, self.text_encoder, self.text_decoder = (
            _linear(weights, name) for name in ("item_encoder.0", "item_decoder", "text_encoder.0", "text_decoder")
        )
        self.encoder.eval().requires_grad_(tuned)
        layers = (self.item_encoder, self.item_decoder, self.text_encoder, self.text_decoder, self.encoder)
        trained = [weight for layer in layers for weight in layer.parameters() if weight.requires_grad]
        self.optimiser = torch.optim.Adam(trained, lr=learning_rate)
        self.read = self.padded = 0  # tokens, without and with padding

    def step(self, x_BD: torch.Tensor, positives: list[int], negatives: list[int]) -> dict[str, float]:
        """One step; the losses before it, sums over the users."""
        item_BD, text_BS = self.items_ND[positives], self.embedded([self.texts[item] for item in positives])
        e_BJ, q_BJ = F.sigmoid(self.item_encoder(item_BD)), F.sigmoid(self.text_encoder(text_BS))
        item_back_BD = self.item_decoder(e_BJ)
        unseen_BD = self.item_decoder(F.sigmoid(self.item_encoder(self.items_ND[negatives])))
        matching = F.mse_loss(e_BJ, q_BJ)  # equation 2
        item_recon = F.mse_loss(item_back_BD, item_BD)  # equation 3
        text_recon = F.mse_loss(self.text_decoder(q_BJ), text_BS.detach())  # equation 4
        rec = -F.logsigmoid((x_BD * item_back_BD).sum(1)) - F.logsigmoid(-(x_BD * unseen_BD).sum(1))  # equation 5
        total = matching + self.alpha * item_recon + self.beta * text_recon + rec.sum()  # equation 6
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        means = (matching, item_recon, text_recon, rec.mean())
        return {name: loss.item() * len(positives) for name, loss in zip(NAMES, means, strict=True)}

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
