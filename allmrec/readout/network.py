"""LLM-SRec's trained part: soft tokens into the frozen LLM, two readout tokens, and maps of what is read at them.

Kim et al., "Lost in Sequence" (KDD 2025), section 3. A user's and an item's vector are read off the LLM's last hidden
state at a readout token behind their prompts, and their product is the score. Knows the network and its files; prompts
are the business of `prompts`, losses that of `losses`.

Dimensions: B prompts, I items, N = n + 1 items (0 is padding), D = teacher's dim, K of what f_I reads (D, or the joint
dim), H = token dim, V = readout dim
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from allmrec.core.artifacts import read_manifest
from allmrec.core.rows import Rows, Table, shared
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tables, read_tensors, write_tensors
from allmrec.data.training_users import MAX_USERS, Targets

WEIGHTS, VECTORS = "readout.safetensors", "vectors.safetensors"
USER, ITEM = 0, 1  # the readout tokens
FIXED = {"mean": True, "spread": False, "norm": False}  # buffers: whether of the items' dimension, or a number
_SHAPE = ("dim", "hidden", "temperature", "layer_norm", "item_input", "soft_token_scale")  # keys of what is stored
_NOISE = 0.1  # of the readout tokens around the mean token, in its spread

Loss = Literal["retrieval", "distil", "uniform", "teacher-map", "teacher-scores"]

# As the paper trains it (equations 1 to 4, Appendix D); widths and the number of negatives are its code's.
_PAPER: dict[str, Any] = {
    "hidden": 2048,
    "losses": ("retrieval", "distil", "uniform"),
    "distil_weight": 1 / 128,
    "readouts_per_prompt": 1,
    "negatives": "own",
    "temperature": None,
    "layer_norm": False,
    "soft_token_scale": None,
    "learning_rate": 1e-4,
    "learning_rate_schedule": "constant",
    "warmup_steps": 0,
    "batch_size": 20,
    "max_gradient_norm": 0.0,
}


class ReadoutConfig(Section):
    """LLM-SRec. `preset` sets the defaults of the other keys; the ones below are those of "strong"."""

    preset: Literal["strong", "paper"] = "strong"  # paper: as in Kim et al. 2025
    dim: int = Field(128, ge=1)  # of the users' and items' vectors
    hidden: int = Field(512, ge=1)  # width of the maps from the LLM's states to vectors; 2048 in the paper's code
    # What is minimised, summed. retrieval: cross-entropy of the target among the negatives; distil: the distance to a
    # map of the teacher's x^u; uniform: that users differ. teacher-map: retrieval by that map; teacher-scores: that the
    # distribution over a batch's items is the teacher's.
    losses: tuple[Loss, ...] = ("retrieval", "distil", "uniform", "teacher-map", "teacher-scores")
    distil_weight: float = Field(1.0, ge=0)  # of the squared distance; 1/128 in the paper, which takes a mean over dim
    # Behind how many of the newest items of a prompt the user is read, each time with the item that follows as the
    # target. A readout costs the prompt's last words, some ten tokens, where another prompt costs them all.
    readouts_per_prompt: int = Field(8, ge=1)
    # What a target is told from, which the user has not seen. round: `round_items` and all targets of the steps between
    # two checkpoints, whose states are read once, at the first of them, so that only f_item learns of them; own:
    # num_negatives of each readout, which are read in every step.
    negatives: Literal["round", "own"] = "round"
    round_items: int = Field(2048, ge=1)  # items drawn for each round
    num_negatives: int = Field(3, ge=1)  # items drawn for each readout in each step
    temperature: float | None = Field(0.07, gt=0)  # of unit vectors' products; null: vectors of any length
    layer_norm: bool = True  # before the maps
    # What f_I makes an item's soft token of. teacher: E_i; joint: e_i, and q_i where `bundle.min_interactions_for_cf`
    # says so, which needs Stage-1 and also tells of items that hardly anyone has.
    item_input: Literal["teacher", "joint"] = "teacher"
    # Norm of the soft tokens as a multiple of the LLM's mean token embedding norm; null: as they come out.
    soft_token_scale: float | None = Field(1.0, gt=0)
    targets: Targets = "last"  # last: a user's last training item; all: all but the first, each behind its own prompt
    max_users: int | None = Field(MAX_USERS, ge=1)  # of more users these many, drawn by a hash of their ids; null: all
    memory_mb: int = Field(4096, ge=1)  # of training users that a worker holds at once; more are read in parts
    learning_rate: float = Field(1e-3, gt=0)  # of Adam
    learning_rate_schedule: Literal["constant", "linear"] = "linear"  # linear: falls to zero over the epochs
    warmup_steps: int = Field(10, ge=0)  # over which the rate rises from zero
    epochs: int = Field(10, ge=1)  # at most
    batch_size: int = Field(16, ge=1)  # users per step, over all workers
    tokens_per_pass: int = Field(8192, ge=1)  # padded tokens in one forward pass of a worker; larger steps take several
    activation_checkpointing: bool = False  # recompute the LLM's activations: less memory, a third slower
    max_gradient_norm: float = Field(1.0, ge=0)  # longer gradients are clipped to it; 0: never
    checkpoint_every_steps: int = Field(50, ge=1)  # steps between checkpoints; there is one after every epoch, too
    # About how many validation cases choose the best weights by NDCG@10; 0: the last ones are kept.
    validation_users: int = Field(1000, ge=0)
    validate_every: int | None = Field(None, ge=1)  # checkpoints between validations; null: after every epoch alone
    patience: int | None = Field(None, ge=1)  # epochs without a better NDCG@10 that end the training; null: never

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return _PAPER | values if isinstance(values, dict) and values.get("preset") == "paper" else values

    @model_validator(mode="after")
    def _learns_to_retrieve(self) -> "ReadoutConfig":
        if not {"retrieval", "teacher-scores"} & set(self.losses):
            raise ValueError("losses: nothing of them compares users with items; add retrieval or teacher-scores")
        return self


class Readout(nn.Module):
    """f_I (`soft`), f_user, f_item, f_CF-user (`teacher`) and the two readout tokens, in float32."""

    mean: torch.Tensor
    spread: torch.Tensor
    norm: torch.Tensor

    def __init__(self, config: ReadoutConfig, item_dim: int, teacher_dim: int, token_dim: int):
        super().__init__()
        self.unit, self.scaled = config.temperature is not None, config.soft_token_scale is not None
        self.item_input, self.teacher_dim = config.item_input, teacher_dim
        self.temperature = config.temperature or 1.0  # products over it are logits
        # Fixed numbers, beside the weights: what items' inputs are standardised by, and the norm of soft tokens.
        for name, shape in FIXED.items():
            self.register_buffer(name, torch.zeros(item_dim if shape else ()), persistent=False)
        self.soft = nn.Sequential(
            nn.Linear(item_dim, token_dim), nn.LayerNorm(token_dim), nn.LeakyReLU(), nn.Linear(token_dim, token_dim)
        )
        self.user, self.item = (_map(token_dim, config.hidden, config) for _ in range(2))
        self.teacher = _map(teacher_dim, 2 * config.dim, config)
        self.tokens = nn.Embedding(2, token_dim)

    def soft_tokens(self, items_IK: torch.Tensor) -> torch.Tensor:
        """What goes into the slots of items with these inputs, (I, H)."""
        tokens_IH = self.soft((items_IK - self.mean) / self.spread)
        return self.norm * F.normalize(tokens_IH, dim=1) if self.scaled else tokens_IH

    def fixed(self) -> dict[str, torch.Tensor]:
        return {name: self.get_buffer(name) for name in FIXED}

    def token(self, kind: int) -> torch.Tensor:
        """The readout token of USER or ITEM, (H,)."""
        return self.tokens(torch.tensor(kind, device=self.tokens.weight.device))

    def vectors(self, kind: int, states_BH: torch.Tensor) -> torch.Tensor:
        """(B, V), of the LLM's states at the readout tokens; of unit length if they are compared by a temperature."""
        return self._finished((self.item if kind == ITEM else self.user)(states_BH))

    def teacher_vectors(self, x_BD: torch.Tensor) -> torch.Tensor:
        """f_CF-user(x^u), (B, V)."""
        return self._finished(self.teacher(x_BD))

    def reached(self) -> torch.Tensor:
        """A number to which every weight of the maps contributes, ()."""
        nothing_1H = torch.zeros_like(self.token(USER))[None]
        nothing_1D = self.mean.new_zeros(1, self.teacher_dim)
        return self.user(nothing_1H).sum() + self.item(nothing_1H).sum() + self.teacher(nothing_1D).sum()

    def _finished(self, vectors_BV: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors_BV, dim=1) if self.unit else vectors_BV


def fresh_readout(
    config: ReadoutConfig,
    items_NK: Table,
    embeddings_TH: torch.Tensor,
    seed: int,
    teacher_dim: int | None = None,
) -> Readout:
    """Weights drawn from `seed` alone; torch's global generator is left as it was.

    The readout tokens begin near the mean token: from noise, an LLM may not look at what is before them.

    Args:
        items_NK: `item_input` of all items, on the CPU.
        embeddings_TH: the LLM's token embeddings.
        teacher_dim: of x^u; by default that of the items.

    Raises:
        ValueError: an item embedding is NaN or inf.
    """
    embeddings_TH, items = embeddings_TH.detach().float().cpu(), Rows.of(items_NK)
    if not all(block.isfinite().all() for block in items.blocks()):
        stage = {"teacher": "train-cf", "joint": "train-alignment"}[config.item_input]
        raise ValueError(f"the item embeddings of {stage} hold NaN or inf; run it again")
    known_N = torch.cat([block.any(1) for block in items.blocks()])
    known_IK = shared(items.take(known_N.nonzero()[:, 0]))
    spread_H, mean_H = torch.std_mean(embeddings_TH, 0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        item_dim = items.shape[1]
        readout = Readout(config, item_dim, teacher_dim or item_dim, embeddings_TH.shape[1])
        readout.tokens.weight.copy_(mean_H + _NOISE * spread_H * torch.randn_like(readout.tokens.weight))
    readout.mean = known_IK.mean(0)
    readout.spread = known_IK.std().clamp_min(1e-12)
    readout.norm = (config.soft_token_scale or 0.0) * embeddings_TH.norm(dim=1).mean()
    return readout


def save_readout(
    storage: Storage, weights: dict[str, torch.Tensor], fixed: dict[str, torch.Tensor], vectors_NV: torch.Tensor
) -> dict[str, dict[str, Any]]:
    """Write the weights and all items' vectors; returns the files' entries for the manifest, whose config must hold
    `baselines`.

    Args:
        fixed: of `Readout.fixed`.
    """
    files = write_tensors(storage, WEIGHTS, weights | fixed)
    return files | write_tensors(storage, VECTORS, {"items": vectors_NV})


def load_readout(storage: Storage) -> tuple[Readout, Rows]:
    """The stored network, frozen, in eval mode, and the items' vectors (N, V). Raises ValueError when damaged."""
    trained_by = read_manifest(storage).config["baselines"]["llm_srec"]
    # How it was trained is of no matter, and may have been by keys of another version.
    config = ReadoutConfig(**{key: trained_by[key] for key in _SHAPE if key in trained_by})
    weights = read_tensors(storage, WEIGHTS)
    token_dim, item_dim = weights["soft.0.weight"].shape
    readout = Readout(config, item_dim, weights["teacher.0.weight"].shape[-1], token_dim)
    for name in FIXED:
        setattr(readout, name, weights.pop(name))
    readout.load_state_dict(weights)
    return readout.eval().requires_grad_(False), read_tables(storage, VECTORS)["items"]


def _map(inputs: int, hidden: int, config: ReadoutConfig) -> nn.Sequential:
    norm = [nn.LayerNorm(inputs)] if config.layer_norm else []
    return nn.Sequential(*norm, nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, config.dim))
