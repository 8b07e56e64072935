"""LLM-SRec's training: the readout learns to tell which item a user comes to, under the same engine as Stage-2.

Runs in a process group; knows nothing of Ray, artifacts or checkpoint files. The losses couple all users of a step:
their vectors are gathered from all workers and passes, and the loss is differentiated by these. So the number of
workers and of passes changes nothing but the order of floating point additions.

Dimensions: B users, R readouts, I items, C candidates, N = n + 1 items (0 is padding), D = teacher's dim, K of what f_I
reads, H = token dim, V readout dim
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from allmrec.cf.teacher import Teacher
from allmrec.cf.training import ValidationCases, mean_metrics
from allmrec.core.distributed import all_reduce_max, all_reduce_sum, whole_batch
from allmrec.core.rows import Table, by_rows
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import distinct_items, take, token_budget_batches
from allmrec.llm.loading import LLMConfig, Placement
from allmrec.llm.prompt import Prompts
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.projection.deepspeed_config import deepspeed_config
from allmrec.projection.engine import (
    checkpoint_activations,
    checksum,
    full_size,
    gathered,
    set_weights,
    start_engine,
)
from allmrec.projection.examples import shares
from allmrec.projection.rounds import Rounds
from allmrec.readout.examples import Comparison, ReadoutExamples, Readouts
from allmrec.readout.losses import readout_loss
from allmrec.readout.network import ITEM, USER, Readout, ReadoutConfig, fresh_readout
from allmrec.readout.prompts import NONE, Branches, read_out


@dataclass(frozen=True)
class Pass:
    """Readouts of prompts of users or of items, that are read at once."""

    prompts: Prompts  # slot_items are rows of `items_IK`
    items_IK: torch.Tensor  # `item_input` of the items in slots
    x_RD: torch.Tensor | None  # of users
    rows: np.ndarray  # int64 (R,): their places in the step's batch
    branches: Branches = NONE
    counts: bool = True  # or it is there only because every worker must run the same passes

    @property
    def kind(self) -> int:
        return ITEM if self.x_RD is None else USER

    @property
    def read(self) -> int:
        """Tokens."""
        return int(_lengths(self.prompts, self.branches).sum())

    @property
    def padded(self) -> int:
        return len(self.prompts) * int(_lengths(self.prompts, self.branches).max())


@dataclass(frozen=True)
class Stored:
    """Readouts of items whose states are known: only f_item is left."""

    states_RH: torch.Tensor
    rows: np.ndarray  # int64 (R,)
    kind, read, padded, counts = ITEM, 0, 0, True


class ReadoutModel(nn.Module):
    """The frozen LLM and the readout in one module, as DeepSpeed wants them."""

    def __init__(self, llm: Any, readout: Readout, padding: int):
        super().__init__()
        self.llm, self.readout, self.padding = llm, readout, padding

    def forward(self, passes: list[Pass | Stored], states: bool = False) -> list[torch.Tensor]:
        """Of users their own vectors and the teacher's, (R, 2, V); of items theirs, (R, V). Or of both what the LLM
        says, (R, H)."""
        if states:
            return [self._states(one) for one in passes if isinstance(one, Pass)]
        found = [self._vectors(one) for one in passes]
        if torch.is_grad_enabled():
            # ZeRO-3 adds to the last step's gradient of a weight that a step's first pass does not reach.
            found[0] = found[0] + 0 * self.readout.reached()
        return found

    def _states(self, one: Pass) -> torch.Tensor:
        soft_IH, token_H = self.readout.soft_tokens(one.items_IK), self.readout.token(one.kind)
        return read_out(self.llm, one.prompts, token_H, soft_IH, self.padding, one.branches)

    def _vectors(self, one: Pass | Stored) -> torch.Tensor:
        if isinstance(one, Stored):
            return self.readout.vectors(ITEM, one.states_RH)
        vectors_RV = self.readout.vectors(one.kind, self._states(one))
        return vectors_RV if one.x_RD is None else torch.stack([vectors_RV, self.readout.teacher_vectors(one.x_RD)], 1)


@dataclass(frozen=True)
class RoundItems:
    """What the steps of a round compare with."""

    step: int  # the round's first
    items: np.ndarray  # int32 (I,), ascending
    states_IH: torch.Tensor  # the LLM's, by the weights that the round began with


class ReadoutTraining(Rounds):
    """A run whose trained part is the readout; see `Rounds`."""

    unit, chosen_by = "users", "ndcg@10"
    remedy = "lower baselines.llm_srec.learning_rate, or look for NaN in the artifact `teacher`"
    config: ReadoutConfig
    examples: ReadoutExamples
    validation: list[tuple[Pass, np.ndarray]]
    round: "RoundItems | None" = None

    def __init__(
        self,
        config: ReadoutConfig,
        llm_config: LLMConfig,
        placement: Placement,
        llm: Any,
        teacher: Teacher,
        items_NK: Table,
        examples: ReadoutExamples,
        cases: ValidationCases | None = None,
        device: torch.device | str = "cpu",
        state: dict[str, Any] | None = None,
    ):
        """
        Args:
            llm: from `load_llm_with_placement`, with the same placement.
            items_NK: what f_I reads, by item index: `config.item_input`.
            cases: this worker's share of those that choose the best weights; without any the last ones are kept.
            state: where to resume from.

        Raises:
            ValueError: an item embedding is NaN or inf.
        """
        super().__init__(config, examples, device)
        self.teacher, self.prompts = teacher.to(self.device), examples.readout_prompts
        self.items_NK = items_NK.to(self.device)
        embedding = llm.get_input_embeddings()
        with gathered(embedding.parameters()):
            self.trained = self.readout = fresh_readout(
                config, items_NK, embedding.weight, examples.seed, teacher.item_embeddings.shape[1]
            )
            token_dim = embedding.weight.shape[1]
        if state is not None:
            self.readout.load_state_dict(state["weights"])
        if config.activation_checkpointing:
            checkpoint_activations(llm)
        largest = max(full_size(parameter) for parameter in llm.parameters())
        self.engine = start_engine(
            ReadoutModel(llm, self.readout, self.prompts.padding),
            self.readout,
            config.learning_rate,
            deepspeed_config(config.max_gradient_norm, llm_config, placement, token_dim, largest),
        )
        self.frozen_checksum = checksum(llm)
        self.validation = [] if cases is None else self._batches(cases, llm_config.tokens_per_batch)
        self.resume(state)

    def loss_weight(self, examples: np.ndarray) -> int:
        return len(examples)

    def due(self) -> bool:
        every, place = self.config.validate_every, self.step % self.steps_per_epoch
        return place == 0 or (every is not None and place % (every * self.config.checkpoint_every_steps) == 0)

    def train_step(self, examples: np.ndarray, prompts: Prompts) -> torch.Tensor:
        loss, groups, outputs, gradients = self._whole_loss(examples, prompts)
        for number, group in enumerate(groups, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(groups))
            found = outputs[0] if len(groups) == 1 else self.engine(group)
            # The engine averages gradients over workers; they are to be summed.
            self.engine.backward(self.world * _by_chain_rule(group, found, gradients))
        self.engine.step()
        every = [one for group in groups for one in group]
        self.read += sum(one.read for one in every)
        self.padded += sum(one.padded for one in every)
        return loss.detach() * (len(examples) if self.rank == 0 else 0)

    def idle_step(self) -> None:
        examples, prompts = self.examples.global_batch(0, 0, 1)
        users = self._passes(prompts, self.examples.histories(examples))[0]
        items = self._passes(self.prompts.of_items(self.examples.targets[examples]))[0]
        self.engine.backward(torch.stack([found.sum() for found in self.engine([users, items])]).sum() * 0)
        self.engine.step()

    @torch.no_grad()
    def loss(self, examples: np.ndarray, prompts: Prompts) -> float:
        """The loss of a global batch, without a step. Every worker must call it."""
        return float(self._whole_loss(examples, prompts)[0])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        if not all_reduce_max(len(self.validation)):
            return {}
        wanted_N = torch.zeros(len(self.items_NK), device=self.device)
        for _, candidates_BC in self.validation:
            wanted_N[torch.from_numpy(candidates_BC.ravel()).long().to(self.device)] = 1
        wanted_N = all_reduce_sum(wanted_N)
        wanted_N[0] = 0
        wanted = wanted_N.nonzero()[:, 0]
        found_IV = self._of_items(wanted.cpu().numpy(), states=False)
        vectors_IV = torch.cat([found_IV.new_zeros(1, found_IV.shape[1]), found_IV])  # the first one is for no item
        row_N = torch.zeros(len(wanted_N), dtype=torch.int64, device=self.device)
        row_N[wanted] = torch.arange(1, len(vectors_IV), device=self.device)
        total_M = torch.zeros(len(METRICS) + 1, dtype=torch.float64, device=self.device)
        for number in range(all_reduce_max(len(self.validation))):
            one, candidates_BC = self.validation[min(number, len(self.validation) - 1)]
            users_BV = self.engine([one])[0][:, 0]
            if number < len(self.validation) and one.counts:
                items_BCV = vectors_IV[row_N[torch.from_numpy(candidates_BC).long().to(self.device)]]
                scores_BC = torch.einsum("bv,bcv->bc", users_BV, items_BCV).cpu().numpy()
                values_BM = evaluate_scores(scores_BC, candidates_BC)
                total_M += torch.from_numpy(np.append(values_BM.sum(axis=0), len(values_BM))).to(self.device)
        return mean_metrics(total_M)

    @torch.no_grad()
    def best_vectors(self, best: dict[str, torch.Tensor]) -> torch.Tensor:
        """All items' vectors by these weights, (N, V) on the CPU, once nothing is trained any more. Every worker must
        call it. The LLM reads the items part by part, so that no worker holds all their prompts."""
        set_weights(self.readout, best)

        def vectors_of(items_I: torch.Tensor) -> torch.Tensor:
            found_IV = self._of_items(items_I[items_I > 0].numpy(), states=False).cpu()
            return torch.cat([found_IV.new_zeros(len(items_I) - len(found_IV), found_IV.shape[1]), found_IV])

        return by_rows(vectors_of, torch.arange(len(self.items_NK)))  # row 0 is padding

    def _whole_loss(
        self, examples: np.ndarray, prompts: Prompts
    ) -> tuple[torch.Tensor, list[list[Any]], list[list[torch.Tensor]], dict[int, torch.Tensor]]:
        """The loss of the whole batch; this worker's passes in groups that are read together, what came of each, and
        the loss's gradients by the vectors of users and of items.

        Of a single group the graph is kept; several are read without, and again for their gradients.
        """
        readouts = self.examples.readouts(examples, prompts)
        compared, items = self._compared(readouts)
        users = self._user_passes(prompts, readouts)
        groups = self._groups(users, items)
        with torch.set_grad_enabled(torch.is_grad_enabled() and len(groups) == 1):
            outputs = [self.engine(group) for group in groups]
        flat = [found for group in outputs for found in group]
        with torch.enable_grad():
            users_R2V = self._whole(users, flat[: len(users)], len(readouts))
            items_IV = self._whole(items, flat[len(users) :], len(compared.items))
            chosen = torch.from_numpy(compared.items.astype(np.int64)).to(self.device)
            x_RD = self.teacher.represent(readouts.histories).clone()
            loss = readout_loss(
                self.config,
                users_R2V[:, 0],
                users_R2V[:, 1],
                items_IV,
                torch.from_numpy(compared.target_R).to(self.device),
                torch.from_numpy(compared.competes_RI).to(self.device),
                self.teacher.shared_scores(x_RD, chosen),
            )
            gradients = torch.autograd.grad(loss, [users_R2V, items_IV])
        return loss.detach(), groups, outputs, dict(zip((USER, ITEM), gradients, strict=True))

    def _round_items(self) -> RoundItems:
        """Read when the round's first step needs them, by the weights that a resumed run begins it with, too."""
        if self.round is None or self.round.step != self.step:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            items = self.examples.round_items(epoch, first, min(first + self.round_steps(), self.steps_per_epoch))
            with torch.no_grad():
                self.round = RoundItems(self.step, items, self._of_items(items, states=True))
        return self.round

    def _of_items(self, items: np.ndarray, states: bool) -> torch.Tensor:
        """The vectors of items, (I, V), or what the LLM says of them, (I, H)."""
        passes = self._passes(self.prompts.of_items(items))
        return self._whole(passes, [self.engine([one], states=states)[0] for one in passes], len(items)).detach()

    def _groups(self, users: list[Pass], items: list[Any]) -> list[list[Any]]:
        """One group where all fits into a pass, on every worker alike; else each pass alone."""
        padded = all_reduce_max(sum(one.padded for one in (*users, *items)))
        if len(users) == len(items) == 1 and padded <= self.config.tokens_per_pass:
            return [[*users, *items]]
        return [[one] for one in (*users, *items)]

    def passes(self, examples: np.ndarray, prompts: Prompts) -> list[Pass]:
        """This worker's share of what the LLM reads in a step."""
        readouts = self.examples.readouts(examples, prompts)
        users, items = self._user_passes(prompts, readouts), self._compared(readouts)[1]
        return users + [one for one in items if isinstance(one, Pass)]

    def _user_passes(self, prompts: Prompts, readouts: Readouts) -> list[Pass]:
        return self._passes(prompts, readouts.histories, readouts.branches)

    def _compared(self, readouts: Readouts) -> tuple[Comparison, list[Any]]:
        """The items that a step compares with, and the passes of this worker's share of them."""
        if self.config.negatives != "round":
            compared = self.examples.comparison(readouts, self.epoch)
            return compared, self._passes(self.prompts.of_items(compared.items))
        stored = self._round_items()
        share = np.arange(self.rank, len(stored.items), self.world)
        states_RH = stored.states_IH[torch.from_numpy(share).to(self.device)]
        return self.examples.comparison(readouts, self.epoch, stored.items), [Stored(states_RH, share)]

    def _passes(self, prompts: Prompts, histories: Sequences | None = None, branches: Branches = NONE) -> list[Pass]:
        """This worker's share of the prompts of items, or of users with a history for each readout."""
        passes = shares(_lengths(prompts, branches), self.rank, self.world, self.config.tokens_per_pass)
        return [self._pass(prompts, histories, branches, rows, counts) for rows, counts in passes]

    def _pass(
        self, prompts: Prompts, histories: Sequences | None, branches: Branches, rows: np.ndarray, counts: bool = True
    ) -> Pass:
        """Some of the prompts."""
        items, here = distinct_items(take(prompts, rows))
        kept, ours = branches.of(rows)
        readouts = np.append(rows, len(prompts) + kept)
        items_IK = self.items_NK[torch.from_numpy(items.astype(np.int64)).to(self.device)]
        # A clone, for autograd takes no inference tensor.
        x_RD = None if histories is None else self.teacher.represent(histories.take(readouts)).clone()
        return Pass(here, items_IK, x_RD, readouts, ours, counts)

    def _whole(self, passes: list[Pass], found: list[torch.Tensor], size: int) -> torch.Tensor:
        """All workers' vectors of the batch, as a leaf."""
        mine = [part if one.counts else part[:0] for one, part in zip(passes, found, strict=True)]
        rows = [one.rows if one.counts else one.rows[:0] for one in passes]
        return whole_batch(torch.cat(mine), np.concatenate(rows), size)

    def _batches(self, cases: ValidationCases, tokens_per_batch: int) -> list[tuple[Pass, np.ndarray]]:
        """This worker's validation users with their candidates; where it has none, a batch that does not count."""
        counts = len(cases) > 0
        if not counts:
            one = np.zeros(1, dtype=np.int64)
            cases = ValidationCases(self.examples.histories(one), self.examples.candidates(one, 0))
        prompts = self.prompts.of_users(cases.histories)
        return [
            (self._pass(prompts, cases.histories, NONE, rows, counts), cases.candidates[rows])
            for rows in token_budget_batches(prompts.lengths + 1, tokens_per_batch)
        ]


def _lengths(prompts: Prompts, branches: Branches) -> np.ndarray:
    """Tokens of each prompt with its readouts, int64 (B,)."""
    return prompts.lengths + 1 + branches.tokens(len(prompts))


def _by_chain_rule(
    group: list[Pass | Stored], found: list[torch.Tensor], gradients: dict[int, torch.Tensor]
) -> torch.Tensor:
    """A number whose gradient by the network is the loss's through these passes, ()."""
    terms = []
    for one, vectors in zip(group, found, strict=True):
        gradient = gradients[one.kind]
        rows = torch.from_numpy(one.rows).to(gradient.device)
        terms.append((vectors * gradient[rows]).sum() * one.counts)
    return torch.stack(terms).sum()
