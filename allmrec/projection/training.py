"""Stage-2: the projectors learn to make the frozen LLM complete prompts with the right title (paper equation 8).

Runs in a process group, under DeepSpeed; knows nothing of Ray, artifacts or checkpoint files. The batch of a step
is global and its loss is a mean over all its tokens, so the number of workers changes nothing but the order of
floating point additions.

Dimensions: B prompts of a pass, T tokens, I items in slots, K target tokens, D = teacher's dim, J = joint dim,
H = token dim, V = vocabulary
"""

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from allmrec.cf.teacher import Teacher
from allmrec.distributed import place, summed
from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens
from allmrec.llm.loading import hidden_states, vocabulary_logits
from allmrec.projection.deepspeed_config import Placement
from allmrec.projection.engine import checksum, moments, set_moments, start_engine, weights, whole
from allmrec.projection.examples import Batch, Examples
from allmrec.projection.projectors import ProjectionConfig, Projectors, fresh_projectors

_CALIBRATION = 4096  # users and items that the projectors' start is fitted to


class Stage2Model(nn.Module):
    """The frozen LLM and the projectors in one module, as DeepSpeed wants them."""

    def __init__(self, llm: Any, projectors: Projectors, padding: int):
        super().__init__()
        self.llm, self.projectors, self.padding = llm, projectors, padding

    def forward(self, batch: Batch, x_BD: torch.Tensor, e_IJ: torch.Tensor) -> torch.Tensor:
        """The summed negative log likelihood of the batch's answers, float32 ().

        Args:
            x_BD: the users' representations.
            e_IJ: joint embeddings of `batch.items`.
        """
        device, prompts = x_BD.device, batch.prompts
        tokens_BT = padded_tokens(prompts, int(prompts.lengths.max()), self.padding).to(device)
        soft = SoftTokens(self.projectors.user(x_BD), self.projectors.item(e_IJ))  # O_u and O_i, equation 7
        embeds_BTH = fill_slots(self.llm.get_input_embeddings()(tokens_BT), prompts, soft)
        positions_BT = torch.arange(tokens_BT.shape[1], device=device).expand_as(tokens_BT)
        # Padding stands on the right, where causality alone hides it: no mask, and so the fastest attention.
        hidden_BTH = hidden_states(self.llm, embeds_BTH, torch.ones_like(tokens_BT), positions_BT)
        row_K, column_K = torch.from_numpy(batch.target_rows), torch.from_numpy(batch.target_columns)
        logits_KV = vocabulary_logits(self.llm, hidden_BTH[row_K.to(device), column_K.to(device)])
        # - sum over users and k of log P(y^u_k | p^u, y^u_<k), equation 8
        return F.cross_entropy(logits_KV, torch.from_numpy(batch.labels).to(device), reduction="sum")


class ProjectionTraining:
    """A training run that can be stopped after any of its rounds and taken up again from its `state_dict`.

    Every worker of the process group makes one and calls the same methods.
    """

    def __init__(
        self,
        config: ProjectionConfig,
        placement: Placement,
        llm: Any,
        teacher: Teacher,
        e_NJ: torch.Tensor,
        examples: Examples,
        device: torch.device | str = "cpu",
        state: dict[str, Any] | None = None,
    ):
        """
        Args:
            llm: from `load_placed_llm`, with the same placement.
            e_NJ: joint embeddings by item index; row 0 is zeros.
            state: where to go on from.
        """
        self.config, self.examples, self.device = config, examples, torch.device(device)
        self.teacher, self.e_NJ = teacher.to(self.device), e_NJ.to(self.device)
        self.rank, self.world = place()
        self.num_passes = math.ceil(math.ceil(config.batch_size / self.world) / config.max_prompts_per_pass)
        self.steps_per_epoch = math.ceil(len(examples) / config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        embedding = llm.get_input_embeddings()
        with whole(embedding.parameters()):
            token_norm, token_dim = embedding.weight.float().norm(dim=1).mean().item(), embedding.weight.shape[1]
        x_UD = self.teacher.represent(examples.histories.take(examples.order(0)[:_CALIBRATION]))
        self.projectors = fresh_projectors(x_UD.shape[1], e_NJ.shape[1], token_dim, examples.seed)
        if state is None:
            some = slice(1, 1 + _CALIBRATION)
            items_ND = self.teacher.item_embeddings.detach()[some].cpu()
            self.projectors.calibrate(x_UD.cpu(), e_NJ[some].cpu(), items_ND, config.soft_token_scale * token_norm)
        else:
            self.projectors.load_state_dict(state["projectors"])
        model = Stage2Model(llm, self.projectors, examples.builder.end)
        self.engine = start_engine(model, self.projectors, config, placement, self.num_passes, token_dim)
        self.frozen_checksum = checksum(llm)
        self.read = self.padded = 0  # tokens of this worker's passes, without and with padding
        self.step, self.losses = 0, [0.0]  # steps done; summed loss of each epoch, the running one last
        if state is not None:
            self._go_on(state)

    def state_dict(self) -> dict[str, Any]:
        """After a step at least. Every worker must call it."""
        return {
            "projectors": self.weights(),
            "moments": moments(self.projectors),
            "step": self.step,
            "losses": list(self.losses),
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """The projectors' whole weights. Every worker must call it."""
        return weights(self.projectors)

    def rounds(self) -> Iterator[dict[str, float]]:
        """Train to the end, and yield the numbers of every `checkpoint_every_steps` steps and of an epoch's rest.

        Raises:
            ValueError: the loss is NaN or inf; names the steps.
        """
        config, examples = self.config, self.examples
        while self.step < self.total_steps:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            last = min(first + config.checkpoint_every_steps, self.steps_per_epoch)
            order = examples.order(epoch)
            started, loss = time.monotonic(), torch.zeros((), dtype=torch.float64, device=self.device)
            self.read, self.padded = 0, 0
            for step in range(first, last):
                loss += self.train_step(order[step * config.batch_size : (step + 1) * config.batch_size], epoch)
            users = order[first * config.batch_size : last * config.batch_size]
            counts = loss.new_tensor([self.read, self.padded])
            total, read, padded = summed(torch.cat([loss[None], counts])).tolist()
            seconds = time.monotonic() - started
            if not math.isfinite(total):
                raise ValueError(
                    f"the loss is {total} in epoch {epoch + 1}, steps {first + 1} to {last}: nothing of them is kept; "
                    "lower projection.learning_rate, or look for NaN in the artifacts `teacher` and `alignment`"
                )
            self.step += last - first
            self.losses[-1] += total
            if last == self.steps_per_epoch:
                self.losses.append(0.0)
            yield {
                "loss": total / examples.target_tokens(users),
                "prompts_per_s": round(len(users) / seconds, 1),
                "tokens_per_s": round(read / seconds),
                "padding %": round(100 * (1 - read / padded), 2),
            }

    def epoch_losses(self) -> list[float]:
        """The mean loss of a target token in each finished epoch."""
        tokens = self.examples.target_tokens(np.arange(len(self.examples)))
        return [total / tokens for total in self.losses[:-1]]

    def train_step(self, users: np.ndarray, epoch: int) -> torch.Tensor:
        """One step on a global batch. Returns the summed loss of this worker's share, float32 ()."""
        tokens = self.examples.target_tokens(users)
        total = torch.zeros((), device=self.device)
        for batch in self.examples.passes(users, epoch, self.rank, self.world, self.num_passes):
            loss = self._loss(batch)
            # The engine averages gradients over workers and passes; they are to be summed, over the batch's tokens.
            self.engine.backward(loss * (self.world * self.num_passes / tokens))
            self.engine.step()
            total += loss.detach()
            self.read += len(batch.prompts.tokens)
            self.padded += len(batch) * int(batch.prompts.lengths.max())
        return total

    def _loss(self, batch: Batch) -> torch.Tensor:
        x_BD = self.teacher.represent(self.examples.histories.take(batch.users))
        e_IJ = self.e_NJ[torch.from_numpy(batch.items).to(self.device)]
        return self.engine(batch, x_BD.clone(), e_IJ)  # a clone, for autograd takes no inference tensor

    def _go_on(self, state: dict[str, Any]) -> None:
        """Take up Adam's moments, the counts and the losses; the projectors' weights are there already."""
        for batch in self.examples.passes(np.arange(1), 0, self.rank, self.world, self.num_passes):
            self.engine.backward(self._loss(batch) * 0)  # a step without gradient moves nothing, but makes moments
            self.engine.step()
        set_moments(self.engine, self.projectors, state["moments"], state["step"])
        self.step, self.losses = state["step"], list(state["losses"])
