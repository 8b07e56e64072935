"""Stage-2: projectors F_U and F_I into the LLM's token space (paper equation 7).

Knows the two networks, what they project and their files; where they start from is the business of `start`, how they
are trained that of `training`.

Dimensions: N = n + 1 items (0 is padding), D = teacher's dim, J = joint dim
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.core.rows import Table
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors, write_tensors
from allmrec.llm.batches import SoftTokens
from allmrec.projection.settings import PAPER, Stage2Config

WEIGHTS, UNTRAINED = "projectors.safetensors", "untrained.safetensors"


class ProjectionConfig(Stage2Config):
    """`preset` sets the defaults of the other keys; the ones below are those of "strong"."""

    paper: ClassVar[dict[str, Any]] = PAPER | {
        "distillation": 0.0,
        "item_input": "joint",
        "user_input": "representation",
        "start": "ordinary",
        "norm_layer": False,
    }

    # With loss: candidates, the share of the teacher's distribution over the candidates in what is to be learnt; the
    # target has the rest. 0: the target alone.
    distillation: float = Field(0.0, ge=0, le=1)
    # What F_I projects: joint embeddings, the teacher's item embeddings (MLP-LLM), or random vectors (Table 9).
    item_input: Literal["joint", "teacher", "random"] = "joint"
    # What F_U projects. representation: x^u. choice: the E_i of the prompt's candidates, weighted by the teacher's
    # distribution over them.
    user_input: Literal["representation", "choice"] = "representation"
    sharpness: float = Field(1.0, gt=0)  # of that distribution: what the teacher's scores are multiplied by
    # ordinary: random weights; teacher: maps under which products of soft tokens are the teacher's scores; vocabulary:
    # likewise, in the directions in which the LLM's own tokens differ most and around their mean; spread: items as far
    # apart as the LLM's tokens, the nearest in E_i the least far, and choices between them.
    start: Literal["ordinary", "teacher", "vocabulary", "spread"] = "ordinary"
    # Initial norm of the soft tokens, as a multiple of the LLM's mean token embedding norm.
    soft_token_scale: float = Field(1.0, gt=0)
    norm_layer: bool = False  # an RMSNorm behind each projector, whose trained gain begins at that norm

    @model_validator(mode="after")
    def _no_knowledge_by_the_back_door(self) -> "ProjectionConfig":
        if self.start != "ordinary" and self.item_input == "random":
            raise ValueError(
                f"start: {self.start} begins with the teacher's scores, and item_input: random is meant to hold none "
                "of its knowledge; set start: ordinary"
            )
        return self

    @model_validator(mode="after")
    def _chooses_where_candidates_are_compared(self) -> "ProjectionConfig":
        if self.user_input == "choice" and self.loss != "candidates":
            raise ValueError(
                "user_input: choice is the teacher's among the candidates, which loss: title does not compare; set "
                "loss: candidates"
            )
        return self

    @model_validator(mode="after")
    def _spreads_what_needs_no_product(self) -> "ProjectionConfig":
        if self.start == "spread" and self.user_input != "choice":
            raise ValueError(
                "start: spread puts items apart, which leaves nothing of their product with x^u; set user_input: choice"
            )
        return self

    @model_validator(mode="after")
    def _distils_where_candidates_are_compared(self) -> "ProjectionConfig":
        if self.distillation and self.loss != "candidates":
            raise ValueError(
                "distillation: the teacher has a distribution over the candidates, and loss: title compares none; set "
                "loss: candidates"
            )
        return self


class Projectors(nn.Module):
    """F_U (`user`) and F_I (`item`), two-layer perceptrons in float32, each with a norm layer behind it or without."""

    def __init__(self, user_dim: int, joint_dim: int, token_dim: int, norm_layer: bool = False):
        super().__init__()
        self.user = _perceptron(user_dim, token_dim, norm_layer)  # O_u = F_U(x^u), equation 7
        self.item = _perceptron(joint_dim, token_dim, norm_layer)  # O_i = F_I(e_i)

    def soft(self, x_BD: torch.Tensor, e_IJ: torch.Tensor) -> SoftTokens:
        """O_u and O_i of some users and items."""
        return SoftTokens(self.user(x_BD), self.item(e_IJ))


def item_inputs(
    config: ProjectionConfig,
    choice: EmbeddingChoice,
    e_NJ: Table,
    q_NJ: Table,
    items_ND: torch.Tensor,
    seed: int,
) -> Table:
    """What F_I projects, by item index, in training and ever after: `config.item_input`.

    Only joint embeddings have q_i. Of "teacher" an item without E_i is zeros; of "random" every item has its
    own vector, whatever is known of it.

    Args:
        items_ND: the teacher's item embeddings.
    """
    if config.item_input == "teacher":
        return items_ND
    if config.item_input == "random":
        return random_inputs(len(e_NJ), e_NJ.shape[1], seed)
    return choice.joint(e_NJ, q_NJ)


def random_inputs(num_rows: int, dim: int, seed: int) -> torch.Tensor:
    """A vector an item that tells nothing of it (paper Table 9), (N, J); row 0 is zeros."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, dim, generator=generator) * (torch.arange(num_rows) > 0)[:, None]


def fresh_projectors(user_dim: int, joint_dim: int, token_dim: int, seed: int, norm_layer: bool = False) -> Projectors:
    """Weights drawn from `seed` alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projectors(user_dim, joint_dim, token_dim, norm_layer)


def save_projectors(
    storage: Storage, weights: dict[str, torch.Tensor], untrained: dict[str, torch.Tensor]
) -> dict[str, dict[str, Any]]:
    """Write state dictionaries of `Projectors`, trained and at their start; returns the files' entries."""
    return write_tensors(storage, WEIGHTS, weights) | write_tensors(storage, UNTRAINED, untrained)


def load_projectors(storage: Storage, untrained: bool = False) -> Projectors:
    """The stored projectors, or their start, frozen, in eval mode.

    Raises:
        ValueError: they are missing or damaged.
    """
    weights = read_tensors(storage, UNTRAINED if untrained else WEIGHTS)
    token_dim, user_dim = weights["user.0.weight"].shape
    norm_layer = "item.3.weight" in weights
    projectors = Projectors(user_dim, weights["item.0.weight"].shape[1], token_dim, norm_layer)
    projectors.load_state_dict(weights)
    return projectors.eval().requires_grad_(False)


def _perceptron(inputs: int, outputs: int, norm_layer: bool) -> nn.Sequential:
    norm = [nn.RMSNorm(outputs)] if norm_layer else []
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs), *norm)
