"""What every training run under the engine shares: rounds of steps, the schedule, checkpoints, the best epoch.

A run can be stopped after any of its rounds and resumed from its `state_dict`. Every worker of the process group makes
one and calls the same methods. What a step is, and what is validated, is the subclasses' business.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sized
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from allmrec.core.distributed import all_reduce_sum, rank_and_world_size
from allmrec.llm.prompt import Prompts
from allmrec.projection.engine import moments, set_learning_rate, set_moments, weights
from allmrec.projection.examples import Examples


class Schedule(Protocol):
    """The keys of a config that `Rounds` reads."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def learning_rate_schedule(self) -> str: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def checkpoint_every_steps(self) -> int: ...
    @property
    def patience(self) -> int | None: ...


class Rounds(ABC):
    """Subclasses set `engine`, `trained` and `validation`, and end their `__init__` with `resume`.

    Attributes:
        unit: what a batch is made of, in the numbers of a round.
        chosen_by: the metric of the best epoch.
        remedy: for a loss that is no number.
    """

    unit, chosen_by = "prompts", "hit@1"
    remedy: str
    engine: Any
    trained: nn.Module  # the part of the engine's module that has gradients, moments and checkpoints
    validation: Sized  # what `validate` works through; without any the last epoch is kept

    def __init__(self, config: Schedule, examples: Examples, device: torch.device | str):
        self.config, self.examples, self.device = config, examples, torch.device(device)
        self.rank, self.world = rank_and_world_size()
        self.steps_per_epoch = examples.steps(config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.read = self.padded = 0  # tokens of this worker's passes, without and with padding
        self.step, self.losses = 0, [0.0]  # steps done; summed loss of each epoch, the running one last
        self.best: dict[str, Any] = {"epoch": 0, self.chosen_by: -1.0}
        self.curve: list[dict[str, float]] = []  # what each validation found, and after how many examples

    @abstractmethod
    def train_step(self, examples: np.ndarray, prompts: Prompts) -> torch.Tensor:
        """One step on a global batch. Returns this worker's part of its summed loss, float32 ()."""

    @abstractmethod
    def idle_step(self) -> None:
        """A step without a gradient, which moves nothing but makes Adam's moments."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Hit@1 and NDCG@10 of all workers' validation cases; none without any. Every worker must call it."""

    @abstractmethod
    def loss_weight(self, examples: np.ndarray) -> int:
        """How many terms the summed loss of these examples has."""

    def resume(self, state: dict[str, Any] | None) -> None:
        """Take up Adam's moments, the counts and the losses; the trained weights are loaded already."""
        if state is not None:
            self.idle_step()
            set_moments(self.engine, self.trained, state["moments"], state["step"])
            self.step, self.losses, self.best = state["step"], list(state["losses"]), state["best"]
            self.curve = list(state["curve"])

    def state_dict(self) -> dict[str, Any]:
        """After a step at least. Every worker must call it."""
        return {
            "weights": weights(self.trained),
            "moments": moments(self.trained),
            "step": self.step,
            "losses": list(self.losses),
            "best": self.best,
            "curve": list(self.curve),
        }

    def best_weights(self) -> dict[str, torch.Tensor]:
        """The trained part's whole weights that were best in validation. Every worker must call it."""
        return self.best.get("weights") or weights(self.trained)

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or none of the last `patience` epochs was better than the best."""
        patience, epochs = self.config.patience, len(self.losses) - 1
        stalled = len(self.validation) > 0 and patience is not None and epochs - self.best["epoch"] >= patience
        return self.step >= self.total_steps or stalled

    @property
    def epoch(self) -> int:
        """The running one, from 0."""
        return self.step // self.steps_per_epoch

    def learning_rate(self, done: int) -> float:
        """Of Adam, after `done` steps."""
        falling = self.config.learning_rate_schedule == "linear"
        rate = self.config.learning_rate * (1 - done / self.total_steps if falling else 1)
        return rate * min(1.0, (done + 1) / max(self.config.warmup_steps, 1))

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train to the end, and yield the numbers of every `checkpoint_every_steps` steps and of an epoch's rest.

        Raises:
            ValueError: the loss is NaN or inf; names the steps.
        """
        config = self.config
        while not self.finished:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            last = min(first + self.round_steps(), self.steps_per_epoch)
            started, loss = time.monotonic(), torch.zeros((), dtype=torch.float64, device=self.device)
            self.read, self.padded, terms, count = 0, 0, 0, 0
            for step in range(first, last):
                set_learning_rate(self.engine, self.learning_rate(epoch * self.steps_per_epoch + step))
                examples, built = self.examples.global_batch(epoch, step, config.batch_size)
                loss += self.train_step(examples, built)
                terms, count = terms + self.loss_weight(examples), count + len(examples)
            counts = loss.new_tensor([self.read, self.padded])
            total, read, padded = all_reduce_sum(torch.cat([loss[None], counts])).tolist()
            seconds = time.monotonic() - started
            if not math.isfinite(total):
                raise ValueError(
                    f"the loss is {total} in epoch {epoch + 1}, steps {first + 1} to {last}: they are discarded; "
                    f"{self.remedy}"
                )
            self.step += last - first
            self.losses[-1] += total
            numbers = {
                "loss": total / terms,
                f"{self.unit}_per_s": round(count / seconds, 1),
                "tokens_per_s": round(read / seconds),
                "padding %": round(100 * (1 - read / padded), 2),
            }
            if last == self.steps_per_epoch:
                self.losses.append(0.0)
            if self.due():
                self._choose()
            yield numbers | self._last_validation()

    def round_steps(self) -> int:
        """Steps of the next round, unless the epoch ends before."""
        return self.config.checkpoint_every_steps

    def due(self) -> bool:
        """Whether to validate now, after a round."""
        return self.step % self.steps_per_epoch == 0

    def epoch_losses(self) -> list[float]:
        """The mean loss of a term in each finished epoch."""
        terms = sum(self.loss_weight(everyone) for everyone in self.examples.every_part())
        return [total / terms for total in self.losses[:-1]]

    @property
    def seen(self) -> int:
        """Examples so far."""
        return self.epoch * len(self.examples) + self.step % self.steps_per_epoch * self.config.batch_size

    def _choose(self) -> None:
        """Validate, and keep the weights if they are the best so far."""
        metrics = self.validate()
        if metrics:
            self.curve.append({self.unit: self.seen, **metrics})
        if metrics and metrics[self.chosen_by] > self.best[self.chosen_by]:
            found = {"epoch": len(self.losses) - 1, self.unit: self.seen, **metrics}
            self.best = found | {"weights": weights(self.trained)}

    def _last_validation(self) -> dict[str, float]:
        """Its metrics and how many examples were seen by then, for the console; nothing before the first."""
        return {f"valid_{name}": value for name, value in (self.curve[-1] if self.curve else {}).items()}
