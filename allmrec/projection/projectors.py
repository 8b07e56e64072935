"""Stage-2: projectors F_U and F_I into the LLM's token space (paper equation 7).

Knows the two networks, their start and their file; how they are trained is `training`'s business.

Dimensions: B users, I items, D = teacher's dim, J = joint dim, H = token dim of the LLM, K pairs of hidden units
"""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from allmrec.artifacts import read_tensors, write_tensors
from allmrec.config import Section
from allmrec.projection.examples import Targets
from allmrec.storage import Storage

WEIGHTS = "projectors.safetensors"


class ProjectionConfig(Section):
    learning_rate: float = Field(1e-4, gt=0)  # of Adam, Table 3
    # linear: falls to zero over the epochs, so that the last steps' noise averages out; the paper's is constant.
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    epochs: int = Field(5, ge=1)  # at most; paper section 5.1
    batch_size: int = Field(4, ge=1)  # prompts in a step, over all workers together; paper section 5.1
    tokens_per_pass: int = Field(8192, ge=1)  # padded ones, of one worker; a larger share is accumulated over passes
    activation_checkpointing: bool = False  # keep no activations within the LLM's layers: less memory, a third slower
    num_candidates: int = Field(20, ge=2)  # titles that a prompt offers: the target and negatives
    targets: Targets = "last"  # a user's last training item, or all behind the first (A-LLMRec_all, section 5.4.2)
    # What F_I projects: joint embeddings, or (paper Table 9) the teacher's item embeddings (MLP-LLM) or random vectors.
    item_input: Literal["joint", "teacher", "random"] = "joint"
    # Norm of the soft tokens at the start, as a multiple of the LLM's mean token embedding norm.
    soft_token_scale: float = Field(1.0, gt=0)
    max_gradient_norm: float = Field(1.0, ge=0)  # longer gradients are shortened to it; 0 never
    checkpoint_every_steps: int = Field(50, ge=1)  # and after every epoch
    # After every epoch Hit@1 of about so many validation cases is measured, and the best epoch kept; 0: the last one.
    validation_users: int = Field(1000, ge=0)
    patience: int | None = Field(None, ge=1)  # epochs without a better Hit@1 before training stops; default: never


class Projectors(nn.Module):
    """F_U (`user`) and F_I (`item`), two-layer perceptrons in float32."""

    def __init__(self, user_dim: int, joint_dim: int, token_dim: int):
        super().__init__()
        self.user = _perceptron(user_dim, token_dim)  # O_u = F_U(x^u), equation 7
        self.item = _perceptron(joint_dim, token_dim)  # O_i = F_I(e_i)

    @torch.no_grad()
    def calibrate(self, x_BD: torch.Tensor, e_IJ: torch.Tensor, items_ID: torch.Tensor, norm: float) -> None:
        """Start both networks as the teacher's vectors, repeated along the token, at mean zero and RMS norm `norm`.

        The teacher scores by s(x^u, E_i). Two networks that start apart would have to find that product again through
        the LLM; with one map for both (for items behind the least squares fit of E_i by e_i) it is their soft tokens'
        product from the first step, but for the means, and they have the LLM's tokens' scale, not the teacher's.

        Args:
            items_ID: E_i of the items of `e_IJ`.

        Raises:
            ValueError: an input is NaN or inf.
        """
        for name, rows in (("user representations", x_BD), ("joint embeddings", e_IJ), ("item embeddings", items_ID)):
            if not rows.isfinite().all():
                raise ValueError(f"the {name} hold NaN or inf; run train-cf and train-alignment again")
        deviation_IJ = (e_IJ - e_IJ.mean(0)).double()
        to_teacher_JD = torch.linalg.lstsq(deviation_IJ, (items_ID - items_ID.mean(0)).double(), driver="gelsd")[0]
        first, _, last = _layers(self.user)
        half, dim = first.out_features // 2, first.in_features
        # Orthonormal, so that the product stays what it is, and whole in any D dimensions in a row: what reads a part
        # of a token's, as the stand-in LLM does, would find it blurred under a random map.
        left, _, right = torch.linalg.svd(first.weight[:half], full_matrices=False)
        map_KD = left @ right
        out_HK = map_KD.T[torch.arange(last.out_features) % dim]
        for network, inputs, map_K in (
            (self.user, x_BD, map_KD),
            (self.item, e_IJ, map_KD @ to_teacher_JD.T.to(map_KD.dtype)),
        ):
            first, activation, last = _layers(network)
            for weight in (first.weight, first.bias, last.weight, last.bias):
                weight.zero_()
            # GELU(z) - GELU(-z) = z: pairs of hidden units start as a linear map.
            first.weight[: 2 * half] = torch.cat([map_K, -map_K])
            last.weight[:, : 2 * half] = torch.cat([out_HK, -out_HK], dim=1)
            _standardise(first, inputs, first.out_features**0.5)
            _standardise(last, activation(first(inputs)), norm)


def item_inputs(config: ProjectionConfig, e_NJ: torch.Tensor, items_ND: torch.Tensor, seed: int) -> torch.Tensor:
    """What F_I projects, by item index: `config.item_input`.

    Args:
        e_NJ: joint embeddings.
        items_ND: the teacher's item embeddings.
    """
    if config.item_input == "teacher":
        return items_ND
    if config.item_input == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(e_NJ.shape, generator=generator) * (torch.arange(len(e_NJ)) > 0)[:, None]
    return e_NJ


def fresh_projectors(user_dim: int, joint_dim: int, token_dim: int, seed: int) -> Projectors:
    """Weights drawn from `seed` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projectors(user_dim, joint_dim, token_dim)


def save_projectors(storage: Storage, weights: dict[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Write a state dictionary of `Projectors`; returns the files' entries for `seal`."""
    return {WEIGHTS: write_tensors(storage, WEIGHTS, weights)}


def load_projectors(storage: Storage) -> Projectors:
    """The stored projectors, frozen, in eval mode. Raises ValueError when they are missing or damaged."""
    weights = read_tensors(storage, WEIGHTS)
    token_dim, user_dim = weights["user.0.weight"].shape
    projectors = Projectors(user_dim, weights["item.0.weight"].shape[1], token_dim)
    projectors.load_state_dict(weights)
    return projectors.eval().requires_grad_(False)


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


def _layers(network: nn.Sequential) -> tuple[nn.Linear, nn.Module, nn.Linear]:
    first, activation, last = network
    assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
    return first, activation, last


def _standardise(layer: nn.Linear, inputs: torch.Tensor, norm: float) -> None:
    """Fold a shift and a scale into `layer`: its outputs then have mean zero and root mean square norm `norm`."""
    outputs = layer(inputs)
    mean = outputs.mean(0)
    scale = norm / (outputs - mean).square().sum(1).mean().sqrt().clamp_min(1e-12)
    layer.bias.copy_((layer.bias - mean) * scale)
    layer.weight.mul_(scale)
