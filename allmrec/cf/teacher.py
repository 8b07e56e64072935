"""The teacher contract: what a frozen collaborative filtering model gives to everything downstream.

Paper section 3: the CF-RecSys gives item embeddings E_i and user representations x^u; Stage-1, Stage-2, retrieval
and evaluation take nothing else from it. Each model lies in a module of its own and registers in TEACHERS.

Dimensions: B users, T positions, C candidates, N = n + 1 items (0 is padding), D = teacher.dim
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from allmrec.artifacts import read_manifest, read_tensors, write_tensors
from allmrec.config import Section
from allmrec.data.sequences import Sequences
from allmrec.storage import Storage

WEIGHTS = "teacher.safetensors"


class TeacherConfig(Section):
    model: Literal["sasrec"] = "sasrec"
    dim: int = Field(50, ge=1)  # d, Table 3
    blocks: int = Field(2, ge=1)  # of self-attention
    heads: int = Field(1, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    max_history: int = Field(50, ge=1)  # newest items that the model reads
    # softmax: over the target and num_negatives items shared by the batch; bce: one negative a position, as in
    # Kang & McAuley 2018.
    loss: Literal["softmax", "bce"] = "softmax"
    num_negatives: int = Field(512, ge=1)  # of the softmax
    learning_rate: float = Field(0.001, gt=0)
    batch_size: int = Field(128, ge=1)  # users in a step, over all workers together
    epochs: int = Field(100, ge=1)  # at most
    eval_every: int = Field(2, ge=1)  # epochs between validations; also between checkpoints
    patience: int = Field(5, ge=1)  # validations without a better NDCG@10 before training stops


class Teacher(nn.Module, ABC):
    """A model that embeds items and represents a user by the history."""

    max_history: int

    @property
    @abstractmethod
    def item_embeddings(self) -> torch.Tensor:
        """E_ND; row 0 is zeros."""

    @abstractmethod
    def user_representations(self, history_BT: torch.Tensor) -> torch.Tensor:
        """x_BD of left-padded histories (int64, 0 is padding, the newest item last); an empty one gives zeros.

        T is at most `max_history`.
        """

    def scores(self, x_BD: torch.Tensor, items_BC: torch.Tensor) -> torch.Tensor:
        """s(x^u, E_i), the dot product: (B, C)."""
        return torch.einsum("bd,bcd->bc", x_BD, self.item_embeddings[items_BC])


TEACHERS: dict[str, type[Teacher]] = {}


def build_teacher(config: TeacherConfig, num_items: int) -> Teacher:
    """A teacher with fresh weights, drawn from torch's global generator."""
    from allmrec.cf import sasrec  # noqa: F401  (registers itself)

    return TEACHERS[config.model](config, num_items)


def save_teacher(storage: Storage, teacher: Teacher) -> dict[str, dict[str, Any]]:
    """Write the weights; returns the files' entries for `seal`, whose config must hold the section `teacher`."""
    return {WEIGHTS: write_tensors(storage, WEIGHTS, teacher.state_dict())}


def load_teacher(storage: Storage) -> Teacher:
    """The stored teacher, frozen, in eval mode. Raises ValueError when it is missing or damaged."""
    manifest = read_manifest(storage)
    teacher = build_teacher(TeacherConfig(**manifest.config["teacher"]), manifest.facts["num_items"])
    teacher.load_state_dict(read_tensors(storage, WEIGHTS))
    return teacher.eval().requires_grad_(False)


@torch.inference_mode()
def represent(teacher: Teacher, histories: Sequences, block: int = 1024) -> torch.Tensor:
    """x^u of whole histories, a block of users at a time: float32 (U, D) on the teacher's device."""
    device = teacher.item_embeddings.device
    x_UD = torch.zeros(len(histories), teacher.item_embeddings.shape[1], device=device)
    by_length = torch.from_numpy(histories.lengths).clamp(max=teacher.max_history).argsort(stable=True).numpy()
    for first in range(0, len(histories), block):
        users = by_length[first : first + block]
        batch = histories.take(users)
        width = max(1, min(int(batch.lengths.max()), teacher.max_history))
        history_BT = torch.from_numpy(batch.padded(width)).long().to(device)
        x_UD[users] = teacher.user_representations(history_BT)
    return x_UD
