"""What every training by Stage-2's loop is told, whatever part it trains (`allmrec.projection.stage2`)."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from allmrec.core.settings import Section
from allmrec.data.training_users import MAX_USERS, Targets

# How the paper trains Stage-2 (Table 3, sections 4.2 and 5.1). It names no clipping, and no choice among epochs.
PAPER: dict[str, Any] = {
    "loss": "title",
    "learning_rate": 1e-4,
    "learning_rate_schedule": "constant",
    "warmup_steps": 0,
    "epochs": 5,
    "batch_size": 4,
    "num_candidates": 20,
    "targets": "last",
    "max_gradient_norm": 0.0,
    "validation_users": 0,
    "patience": None,
}


class Stage2Config(Section):
    """`preset` sets the defaults of the other keys; the ones below are those of "strong"."""

    paper: ClassVar[dict[str, Any]] = PAPER

    preset: Literal["strong", "paper"] = "strong"  # paper: no gradient clipping, and the last epoch is kept
    # title: the likelihood of the target's whole title (equation 8). candidates: the target's probability among the
    # candidates on their trie, which is what ranking reads; no part of it rewards writing a title as such.
    loss: Literal["title", "candidates"] = "title"
    learning_rate: float = Field(1e-4, gt=0)  # of Adam, Table 3
    # linear: falls to zero over the epochs, which averages out the last steps' noise; the paper's is constant.
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)  # over which the rate rises from zero
    epochs: int = Field(5, ge=1)  # at most; paper section 5.1
    batch_size: int = Field(4, ge=1)  # prompts per step, over all workers; paper section 5.1
    tokens_per_pass: int = Field(8192, ge=1)  # padded tokens in one forward pass of a worker; larger steps take several
    activation_checkpointing: bool = False  # recompute the LLM's activations: less memory, a third slower
    num_candidates: int = Field(20, ge=2)  # titles offered by a training prompt: the target and negatives
    targets: Targets = "last"  # last: a user's last training item; all: all but the first (section 5.4.2)
    # Users to train on, drawn by a hash of their ids; null: all. What an epoch is, follows from it.
    max_users: int | None = Field(MAX_USERS, ge=1)
    memory_mb: int = Field(4096, ge=1)  # of training users that a worker holds at once; more are read in parts
    max_gradient_norm: float = Field(1.0, ge=0)  # longer gradients are clipped to it; 0: never
    checkpoint_every_steps: int = Field(50, ge=1)  # steps between checkpoints; there is one after every epoch, too
    # About how many validation cases choose the best weights by Hit@1; 0: the last ones are kept.
    validation_users: int = Field(1000, ge=0)
    # Prompts between validations, which draw the learning curve; null: after every epoch alone.
    validate_every_prompts: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=1)  # epochs without a better Hit@1 that end the training; null: never

    @property
    def weight_inputs(self) -> int:
        """Of how many matrices in each of the LLM's layers the inputs are kept, for a gradient of the weights."""
        return 0

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return cls.paper | values if isinstance(values, dict) and values.get("preset") == "paper" else values
