"""The teacher contract: what a frozen collaborative filtering model gives to everything downstream.

Paper section 3: the CF-RecSys gives item embeddings E_i and user representations x^u; Stage-1, Stage-2, retrieval
and evaluation take nothing else from it. `Teacher` is that contract; `SequenceTeacher` adds what the models need
that are trained here. Each model has a module of its own, and TEACHERS names them; "external" is trained elsewhere.

Dimensions: B users, U users of any number, T positions, C candidates, K items shared by all rows, N = n + 1 items (0
is padding), R texts, S of the text encoder, D = teacher.dim
"""

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn
from torch.nn import functional as F

from allmrec.cf.contrastive import PretrainingConfig
from allmrec.cf.dropout import Dropout, Masks
from allmrec.cf.items import TextItems
from allmrec.core.artifacts import read_manifest
from allmrec.core.rows import Rows, Table, is_large, shared
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors, write_tensors
from allmrec.data.config import SourceConfig
from allmrec.data.sequences import Sequences
from schemas import item_embeddings, user_representations

WEIGHTS = "teacher.safetensors"
_TRIED = 64  # items by which a teacher's score is seen to be a product

# model → (module, class)
TEACHERS = {
    "sasrec": ("allmrec.cf.sasrec", "SASRec"),
    "gru4rec": ("allmrec.cf.gru4rec", "GRU4Rec"),
    "nextitnet": ("allmrec.cf.nextitnet", "NextItNet"),
    "ncf": ("allmrec.cf.ncf", "NCF"),
    "external": ("allmrec.cf.external", "ExternalTeacher"),
}

# What the paper trains its CF-RecSys with (section 5.1, Table 3); where it is silent, the models' own papers.
_PAPER = {"loss": "bce", "learning_rate": 0.001, "epochs": 200, "validation": "random"}
# What suits a model better than the common defaults: NCF scores pairs one by one, so every negative is expensive.
_MODELS: dict[str, dict[str, Any]] = {"gru4rec": {"blocks": 1}, "ncf": {"blocks": 3, "loss": "bce"}}
_SEQUENTIAL = ("sasrec", "gru4rec", "nextitnet")


class TeacherConfig(Section):
    """`preset` sets the defaults of the other keys; the ones below are those of "strong"."""

    # external: another system's vectors.
    model: Literal["sasrec", "gru4rec", "nextitnet", "ncf", "external"] = "sasrec"
    preset: Literal["strong", "paper"] = "strong"  # paper: trained as in section 5.1
    # What an item is known by. ids: a vector of its own; text: its text embedding, which the model maps (MoRec).
    items: Literal["ids", "text"] = Field("ids", exclude_if=lambda items: items == "ids")
    text_layers: int = Field(1, ge=1, exclude_if=lambda layers: layers == 1)  # of that map
    # Align users with their histories' texts first (CTRL); null: no first stage. {}: with its defaults.
    pretraining: PretrainingConfig | None = Field(None, exclude_if=lambda pretraining: pretraining is None)
    dim: int = Field(50, ge=1)  # d, of item embeddings and user representations; Table 3
    blocks: int = Field(2, ge=1)  # of self-attention or dilated convolutions; layers of the GRU or the MLP
    heads: int = Field(1, ge=1)  # of SASRec's attention
    dropout: float = Field(0.5, ge=0, lt=1)  # share of activations set to zero in training
    max_history: int = Field(50, ge=1)  # newest items of a user that the model reads
    # softmax: over the target and num_negatives items shared by the batch; bce: one negative per position, as in
    # Kang & McAuley 2018.
    loss: Literal["softmax", "bce"] = "softmax"
    num_negatives: int = Field(512, ge=1)  # of the loss softmax
    learning_rate: float = Field(0.002, gt=0)  # of Adam
    batch_size: int = Field(128, ge=1)  # users per step, over all workers
    epochs: int = Field(100, ge=1)  # at most; see patience
    eval_every: int = Field(5, ge=1)  # epochs between validations, and between checkpoints
    patience: int = Field(4, ge=1)  # validations in a row without a better NDCG@10 that end the training
    validation: Literal["random", "full"] = "full"  # targets ranked among negatives, or all items
    validation_users: int = Field(5000, ge=1)  # size of the validation sample, about
    memory_mb: int = Field(4096, ge=1)  # of training sequences that a worker holds at once; more are read in parts
    item_embeddings: SourceConfig | None = None  # of model external: Parquet, item_id and embedding
    user_representations: SourceConfig | None = None  # of model external: Parquet, user_id and embedding

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        defaults = dict(_PAPER) if values.get("preset") == "paper" else {}
        return defaults | _MODELS.get(values.get("model", ""), {}) | values

    @property
    def is_pretrained(self) -> bool:
        return self.pretraining is not None and self.pretraining.epochs > 0

    @model_validator(mode="after")
    def _sequential(self) -> "TeacherConfig":
        for key, wanted in (("items: text", self.items == "text"), ("pretraining", self.pretraining is not None)):
            if wanted and self.model not in _SEQUENTIAL:
                models = ", ".join(_SEQUENTIAL)
                raise ValueError(f"{key} is for the models {models}; set one of them, or leave it out of {self.model}")
        return self

    @field_validator("item_embeddings", "user_representations", mode="before")
    @classmethod
    def _from_uris(cls, value: Any) -> Any:
        """A URI, or a list of them, is short for `{paths: [...]}`."""
        paths = [value] if isinstance(value, str) else value
        return {"paths": paths} if isinstance(paths, list) else value

    @model_validator(mode="after")
    def _external_tables(self) -> "TeacherConfig":
        for table in (item_embeddings, user_representations):
            name = table.__name__.rpartition(".")[2]
            source: SourceConfig | None = getattr(self, name)
            if self.model != "external":
                if source is not None:
                    raise ValueError(f"{name} is read by model external alone; set that model or leave {name} out")
                continue
            if source is None or not source.paths:
                raise ValueError(f"model external needs {name}: name the Parquet files of that table")
            if source.format != "parquet":
                raise ValueError(f"{name}.format: {source.format} is not read here; write the table as Parquet")
            for column in source.columns:
                if column not in table.SCHEMA.names:
                    known = ", ".join(table.SCHEMA.names)
                    raise ValueError(f"{name}.columns: unknown column {column!r}; known: {known}")
        return self


def teacher_beside(name: str, own: TeacherConfig, main: TeacherConfig) -> TeacherConfig:
    """MoRec or CTRL as a system beside the main teacher.

    Keys that `own` leaves out are those of `main`, for the same budget; not where it names a model or a preset, nor
    where `main` is no sequential model.
    """
    keys = own.model_dump(exclude_unset=True)
    inherits = main.model in _SEQUENTIAL and not {"model", "preset"} & keys.keys()
    inherited = main.model_dump(exclude_unset=True, exclude={"items", "text_layers", "pretraining"}) if inherits else {}
    is_what = {"items": "text"} if name == "morec" else {"pretraining": keys.get("pretraining") or {}}
    return TeacherConfig(**inherited | keys | is_what)


class Teacher(nn.Module, ABC):
    """A model that embeds items, represents users and scores one against the other."""

    @property
    @abstractmethod
    def item_embeddings(self) -> torch.Tensor:
        """E_ND; row 0 is zeros."""

    @abstractmethod
    def represent(self, histories: Sequences) -> torch.Tensor:
        """x^u of users with whole histories: float32 (U, D) on the teacher's device; zeros where it knows nothing."""

    def take_items(self, rows_N: torch.Tensor, new_ND: Table) -> None:
        """Know other items from now on.

        Args:
            rows_N: int64, the row that each of them has had; 0 for padding and for an item that is new.
            new_ND: E_i of those that are new; zeros where there is none. Other rows are not read.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps to the items that it was made with")

    def embed_texts(self, texts_RS: torch.Tensor) -> torch.Tensor | None:
        """E_i of items by their text embeddings alone, (R, D); None of a teacher that reads no texts."""
        return None

    def lookup(self, items: torch.Tensor) -> torch.Tensor:
        """E_i of some items, (*items.shape, D)."""
        return F.embedding(items, self.item_embeddings)

    def scores(self, x_BD: torch.Tensor, items_BC: torch.Tensor) -> torch.Tensor:
        """s(x^u, E_i) of every row's own items: (B, C). The dot product, unless the model says otherwise."""
        return torch.einsum("bd,bcd->bc", x_BD, self.lookup(items_BC))

    @torch.inference_mode()
    def scores_by_product(self) -> bool:
        """Whether s(x^u, E_i) is the dot product of x^u and E_i, tried on some items in both places."""
        known = self.item_embeddings.any(1).nonzero()[:, 0]
        some = known[:: max(1, len(known) // _TRIED)]
        x_KD = self.item_embeddings[some]
        return torch.allclose(self.shared_scores(x_KD, some), x_KD @ x_KD.T, rtol=1e-3, atol=1e-5, equal_nan=True)

    def shared_scores(self, x_BD: torch.Tensor, items_K: torch.Tensor | None = None) -> torch.Tensor:
        """s(x^u, E_i) of every row with the same items, by default the whole catalogue with padding: (B, K)."""
        return x_BD @ (self.item_embeddings if items_K is None else self.lookup(items_K)).T


class SequenceTeacher(Teacher):
    """A teacher that is trained on sequences and represents a user by the history, known at training or not."""

    @abstractmethod
    def __init__(self, config: TeacherConfig, num_items: int):
        super().__init__()
        self.max_history = config.max_history
        self.masks = Masks()  # of its dropouts
        self.dropout = Dropout(config.dropout, self.masks)
        self.items: nn.Embedding = nn.Embedding(num_items + 1, config.dim, padding_idx=0)

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.items.weight

    def embed_texts(self, texts_RS: torch.Tensor) -> torch.Tensor | None:
        return self.items.embed(texts_RS) if isinstance(self.items, TextItems) else None

    def begin_step(self, items: torch.Tensor) -> None:
        """Say which items a training step reads, in any shape, before it reads them."""
        if isinstance(self.items, TextItems):
            self.items.begin_step(items)

    def lookup(self, items: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.items(items)
        return found

    def item_tables(self) -> list[nn.Embedding]:
        """All tables with a row an item: what the model knows items by."""
        return [part for part in self.modules() if isinstance(part, nn.Embedding) and part.padding_idx == 0]

    @torch.no_grad()
    def take_items(self, rows_N: torch.Tensor, new_ND: Table) -> None:
        """As `Teacher.take_items`; tables besides E have zeros for what is new."""
        for table in self.item_tables():
            rows = Rows.of(table.weight.detach()).take(rows_N)  # row 0 is zeros
            if table is self.items:
                rows = Rows.of(new_ND).where(rows_N == 0, rows)
            table.weight, table.num_embeddings = nn.Parameter(shared(rows), requires_grad=False), len(rows_N)

    @abstractmethod
    def forward(self, history_BT: torch.Tensor) -> torch.Tensor:
        """Representations (B, T, D) of left-padded histories (int64, 0 is padding, the newest item last).

        The one at t knows items up to t alone; padded positions are zeros. T is at most `max_history`.
        """

    def user_representations(self, history_BT: torch.Tensor) -> torch.Tensor:
        """x_BD of left-padded histories; an empty one gives zeros."""
        return self(history_BT)[:, -1]

    def contexts(self, items_BT: torch.Tensor) -> torch.Tensor:
        """What items_BT[:, 1:] are predicted from in training: (B, T - 1, D)."""
        return self(items_BT[:, :-1])

    @torch.inference_mode()
    def represent(self, histories: Sequences, block: int = 1024) -> torch.Tensor:
        device = self.item_embeddings.device
        x_UD = torch.zeros(len(histories), self.item_embeddings.shape[1], device=device)
        by_length = torch.from_numpy(histories.lengths).clamp(max=self.max_history).argsort(stable=True).numpy()
        for first in range(0, len(histories), block):
            users = by_length[first : first + block]
            batch = histories.take(users)
            width = max(1, min(int(batch.lengths.max()), self.max_history))
            x_UD[users] = self.user_representations(torch.from_numpy(batch.padded(width)).long().to(device))
        return x_UD


@torch.no_grad()
def draw_tables(*tables: nn.Embedding) -> None:
    """Start tables of items small, with zeros for padding."""
    for table in tables:
        nn.init.normal_(table.weight, std=0.02)[0] = 0


def build_teacher(config: TeacherConfig, num_items: int, text_dim: int | None = None) -> SequenceTeacher:
    """A teacher with fresh weights, drawn from torch's global generator.

    Args:
        text_dim: S, where `config.items` is "text".
    """
    teacher: SequenceTeacher = _class(config)(config, num_items)
    if config.items == "text":
        assert text_dim is not None, "texts have dimensions"
        teacher.items = TextItems(teacher.items, text_dim, config.text_layers)
    return teacher


def save_teacher(storage: Storage, teacher: Teacher) -> dict[str, dict[str, Any]]:
    """Write the weights; returns the files' entries for the manifest, whose config must hold the section `teacher`."""
    return write_tensors(storage, WEIGHTS, teacher.state_dict())


def load_teacher(storage: Storage) -> Teacher:
    """The stored teacher, frozen, in eval mode. Raises ValueError when it is missing or damaged."""
    manifest, weights = read_manifest(storage), read_tensors(storage, WEIGHTS)
    config = TeacherConfig(**manifest.config["teacher"])
    if config.model == "external":
        teacher = _class(config)(**weights)
    else:
        mean_S = weights.get("items.mean")
        mapped = {name for name, weight in weights.items() if is_large(weight.nbytes)}
        num_items, text_dim = manifest.stats["num_items"], None if mean_S is None else len(mean_S)
        teacher = build_teacher(config, 0 if mapped else num_items, text_dim)
        for table in teacher.item_tables() if mapped else ():  # which were not drawn, and have room in `weights` alone
            nothing_1D = table.weight.detach()
            table.weight = nn.Parameter(nothing_1D.expand(num_items + 1, -1), requires_grad=False)
            table.num_embeddings = num_items + 1
        # Copies of the others are aligned, on which the last bits of products depend.
        own = {name: weight if name in mapped else weight.clone() for name, weight in weights.items()}
        teacher.load_state_dict(own, assign=True)
    return teacher.eval().requires_grad_(False)


def _class(config: TeacherConfig) -> Any:
    module, name = TEACHERS[config.model]
    return getattr(import_module(module), name)
