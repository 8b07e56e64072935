"""Stage-1: the alignment network (paper section 4.1), and the joint embeddings that it leaves behind.

Two autoencoders share their latent space: f_I for the teacher's item embeddings, f_T for the text embeddings. Where
those come from, a table or SBERT itself, is the business of `texts`.

`alignment.preset: paper` is section 4.1 as printed; the default departs from it where docs/alignment.md has the
measurement. With `alignment.standardise` E and Q are centred and divided by one number each, the root mean square over
the catalogue, for in scales of their own (an SBERT vector has unit length over hundreds of dimensions) the mean squared
errors of equations 2 to 4 vanish beside equation 5; one number keeps the geometry. Losses 3 and 4 are then in these
units. They are those of the text encoder as it is before Stage-1 and stay while it is fine-tuned: units that followed Q
would let it shrink unseen.

Dimensions: N = n + 1 items (0 is padding), R rows, D = teacher.dim, S = dimensions of the text encoder, J = d'
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from allmrec.core.artifacts import read_manifest
from allmrec.core.rows import Rows, by_rows
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tables, read_tensors, write_tensors
from allmrec.data.training_users import MAX_USERS, Targets

WEIGHTS, JOINT = "alignment.safetensors", "joint.safetensors"
LossName = Literal["matching", "item_recon", "text_recon", "rec"]  # equations 2 to 5
Activation = Literal["gelu", "sigmoid"]

_ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "sigmoid": nn.Sigmoid}
# Section 4.1 as printed. It names no activation for its MLPs of one layer; a sigmoid is what its authors use.
_PAPER = {
    "unseen_weight": 0,
    "standardise": False,
    "activation": "sigmoid",
    "text_encoder": "fine-tuned",
    "held_out": 0,
}


class AlignmentConfig(Section):
    """`preset` sets the defaults of the other keys; the ones below are those of "default"."""

    preset: Literal["default", "paper"] = "default"  # paper: equations 2 to 6 as printed
    joint_dim: int = Field(128, ge=1)  # d', of e_i and q_i; Table 3
    alpha: float = Field(0.5, ge=0)  # weight of the items' reconstruction, eq. 6
    beta: float = Field(0.5, ge=0)  # weight of the texts' reconstruction, eq. 6
    losses: tuple[LossName, ...] = Field(("matching", "item_recon", "text_recon", "rec"), min_length=1)  # of eq. 6
    targets: Targets = "last"  # items of a sequence that Stage-1 learns from; all: A-LLMRec_all
    unseen_weight: float = Field(1, ge=0)  # of an unseen item per target in eq. 2 to 4; the target weighs 1
    standardise: bool = True  # centre E and Q and divide each by one number
    activation: Activation = "gelu"  # of f_I^enc and f_T^enc
    text_encoder: Literal["frozen", "fine-tuned"] = "frozen"  # whether SBERT is trained too; the paper does
    texts_per_pass: int = Field(64, ge=1)  # at most, that a fine-tuned SBERT reads in one forward pass
    max_padding: float = Field(0.1, ge=0, lt=1)  # largest padded share of such a pass; 0.5 suits GPUs
    gradient_checkpointing: bool = False  # of a fine-tuned SBERT: less memory for a second forward pass
    learning_rate: float = Field(0.0001, gt=0)  # of Adam; Table 3
    batch_size: int = Field(32, ge=1)  # users per step, over all workers
    epochs: int = Field(10, ge=1)  # paper section 5.1
    # Users to train on, drawn by a hash of their ids; null: all. What an epoch is, follows from it.
    max_users: int | None = Field(MAX_USERS, ge=1)
    # Of training users and their x^u that a worker holds at once; more are read in parts.
    memory_mb: int = Field(4096, ge=1)
    held_out: float = Field(0.02, ge=0, lt=1)  # share of items withheld from training to measure the alignment on

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        paper = isinstance(values, dict) and values.get("preset") == "paper"
        return _PAPER | values if paper else values

    @model_validator(mode="after")
    def _sbert_is_reached(self) -> "AlignmentConfig":
        if self.text_encoder == "fine-tuned" and not {"matching", "text_recon"} & set(self.losses):
            raise ValueError(
                "text_encoder fine-tuned learns from the losses matching and text_recon, and losses has neither; "
                "name one of them, or set text_encoder: frozen"
            )
        return self


class AlignmentNetwork(nn.Module):
    """f_I^enc and f_T^enc, one layer with its activation each, and the linear f_I^dec and f_T^dec."""

    def __init__(self, item_dim: int, text_dim: int, joint_dim: int, activation: Activation = "gelu"):
        super().__init__()
        self.item_encoder = nn.Sequential(nn.Linear(item_dim, joint_dim), _ACTIVATIONS[activation]())
        self.item_decoder = nn.Linear(joint_dim, item_dim)
        self.text_encoder = nn.Sequential(nn.Linear(text_dim, joint_dim), _ACTIVATIONS[activation]())
        self.text_decoder = nn.Linear(joint_dim, text_dim)
        self.register_buffer("item_mean", torch.zeros(item_dim))
        self.register_buffer("item_scale", torch.ones(()))
        self.register_buffer("text_mean", torch.zeros(text_dim))
        self.register_buffer("text_scale", torch.ones(()))

    def standardise(self, items_ND: torch.Tensor, texts_NS: torch.Tensor) -> None:
        """Take the catalogue's means and scales; row 0, padding, does not count."""
        self.item_mean, self.item_scale = _moments(items_ND[1:])
        self.text_mean, self.text_scale = _moments(texts_NS[1:])

    def standard_items(self, items_RD: torch.Tensor) -> torch.Tensor:
        return (items_RD - self.item_mean) / self.item_scale

    def original_items(self, items_RD: torch.Tensor) -> torch.Tensor:
        """The inverse of `standard_items`."""
        return items_RD * self.item_scale + self.item_mean

    def standard_texts(self, texts_RS: torch.Tensor) -> torch.Tensor:
        return (texts_RS - self.text_mean) / self.text_scale

    def encode_items(self, items_RD: torch.Tensor) -> torch.Tensor:
        """e_i = f_I^enc(E_i): (R, J)."""
        return self.item_encoder(self.standard_items(items_RD))

    def encode_texts(self, texts_RS: torch.Tensor) -> torch.Tensor:
        """q_i = f_T^enc(Q_i): (R, J), what replaces e_i where there are no interactions."""
        return self.text_encoder(self.standard_texts(texts_RS))

    def decode_items(self, joint_RJ: torch.Tensor) -> torch.Tensor:
        """f_I^dec of joint embeddings, in the teacher's units: (R, D); of q_i, the E_i of an item that has none."""
        return self.original_items(self.item_decoder(joint_RJ))

    @torch.no_grad()
    def joint(self, items_ND: torch.Tensor, texts_NS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(e_NJ, q_NJ) of the catalogue; row 0 is zeros."""
        e_NJ, q_NJ = by_rows(self.encode_items, items_ND), by_rows(self.encode_texts, texts_NS)
        e_NJ[0], q_NJ[0] = 0, 0
        return e_NJ, q_NJ


def load_network(storage: Storage) -> AlignmentNetwork:
    """The network of the artifact, whose config must hold the section `alignment`, frozen.

    Raises:
        ValueError: it is missing or damaged.
    """
    config = AlignmentConfig(**read_manifest(storage).config["alignment"])
    weights = read_tensors(storage, WEIGHTS)
    joint_dim, item_dim = weights["item_encoder.0.weight"].shape
    network = AlignmentNetwork(item_dim, weights["text_encoder.0.weight"].shape[1], joint_dim, config.activation)
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def load_joint(storage: Storage) -> tuple[Rows, Rows]:
    """(e_NJ, q_NJ) from the `alignment` artifact. Raises ValueError when it is missing or damaged."""
    joint = read_tables(storage, JOINT)
    return joint["e"], joint["q"]


def save_network(storage: Storage, network: AlignmentNetwork) -> dict[str, dict]:
    """Write the network; returns the files' entries for the manifest."""
    return write_tensors(storage, WEIGHTS, network.state_dict())


def save_alignment(
    storage: Storage, network: AlignmentNetwork, e_NJ: torch.Tensor, q_NJ: torch.Tensor
) -> dict[str, dict]:
    """Write the network and the joint embeddings; returns the files' entries for the manifest."""
    return save_network(storage, network) | write_tensors(storage, JOINT, {"e": e_NJ, "q": q_NJ})


def _moments(rows_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean_D = rows_ND.mean(0)
    squares_ND = by_rows(lambda rows_RD: (rows_RD - mean_D).square(), rows_ND)
    return mean_D, squares_ND.mean().sqrt().clamp(min=1e-6)
