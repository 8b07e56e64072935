"""Stage-2's loop: some part learns to make the frozen LLM complete prompts with the right title (paper equation 8), or
to find it among the candidates.

What that part is, the subclasses say: projectors in `training`, low-rank weights within the LLM in `tallrec`. Runs in a
process group, under DeepSpeed; knows nothing of Ray, artifacts or checkpoint files. The batch of a step is global and
its loss is a mean over all its tokens or prompts, so the number of workers changes nothing but the order of floating
point additions. After an epoch, or more often, the validation cases are ranked, and the best weights kept.

Dimensions: B prompts of a pass, T tokens, C candidates, K target tokens, H = token dim, V = vocabulary
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from allmrec.cf.training import ValidationCases, mean_metrics
from allmrec.core.distributed import all_reduce_max, all_reduce_sum
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens, fill_slots, padded_tokens, token_budget_batches
from allmrec.llm.forward import logits_at
from allmrec.llm.loading import LLMConfig, Placement
from allmrec.llm.packed import candidate_log_p
from allmrec.llm.probe import deviation, refuse_deviating
from allmrec.llm.prompt import Prompts
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.projection.deepspeed_config import deepspeed_config
from allmrec.projection.engine import checkpoint_activations, checksum, full_size, start_engine
from allmrec.projection.examples import Batch, CandidateBatch
from allmrec.projection.rounds import Rounds
from allmrec.projection.settings import Stage2Config
from allmrec.projection.validation import ValidationBatch


class Stage2Model(nn.Module):
    """The frozen LLM and the trained part in one module, as DeepSpeed wants them."""

    def __init__(self, llm: Any, trained: Any, padding: int):
        """
        Args:
            trained: a module whose `soft` makes the soft tokens of a pass, or None for prompts without slots.
        """
        super().__init__()
        self.llm, self.trained, self.padding = llm, trained, padding

    def forward(self, work: Batch | CandidateBatch | ValidationBatch | None, *inputs: torch.Tensor) -> torch.Tensor:
        """The summed negative log likelihood of a `Batch`'s answers, (); log P of the others' candidates, float64
        (B, C) on the CPU; of None the LLM's `deviation`, ().

        Args:
            inputs: of `soft`.
        """
        if work is None:
            return torch.tensor(deviation(self.llm))
        soft = self.trained.soft(*inputs)
        if isinstance(work, Batch):
            return self._title_loss(work, soft)
        return candidate_log_p(self.llm, work.prompts, work.tries, soft, self.padding)

    def _title_loss(self, batch: Batch, soft: SoftTokens | None) -> torch.Tensor:
        embedding, prompts = self.llm.get_input_embeddings(), batch.prompts
        device = embedding.weight.device
        tokens_BT = padded_tokens(prompts, int(prompts.lengths.max()), self.padding).to(device)
        embeds_BTH = embedding(tokens_BT)
        if soft is not None:
            embeds_BTH = fill_slots(embeds_BTH, prompts, soft)
        positions_BT = torch.arange(tokens_BT.shape[1], device=device).expand_as(tokens_BT)
        target_K = torch.from_numpy(batch.target_rows * tokens_BT.shape[1] + batch.target_columns).to(device)
        # Padding is on the right, where causality alone hides it: no mask, and so the fastest attention.
        logits_KV = logits_at(
            self.llm,
            target_K,
            inputs_embeds=embeds_BTH,
            attention_mask=torch.ones_like(tokens_BT),
            position_ids=positions_BT,
            use_cache=False,
        )
        # - sum over users and k of log P(y^u_k | p^u, y^u_<k), equation 8
        return F.cross_entropy(logits_KV, torch.from_numpy(batch.labels).to(device), reduction="sum")


class Stage2Training(Rounds):
    """A run of any trained part; see `Rounds`. Subclasses end their `__init__` with `begin`."""

    config: Stage2Config
    validation: list[ValidationBatch]

    def begin(
        self,
        llm_config: LLMConfig,
        placement: Placement,
        llm: Any,
        trained: nn.Module,
        cases: ValidationCases | None,
        state: dict[str, Any] | None,
    ) -> None:
        """Start the engine, and take up where a run was stopped.

        Args:
            placement: where the LLM's weights are.
            llm: from `load_llm_with_placement`, with the same placement.
            trained: see `Stage2Model`.
            cases: this worker's share of those that choose the best epoch; without any the last one is kept.
            state: where to resume from.

        Raises:
            ValueError: the LLM's architecture cannot be ranked by tries.
        """
        self.trained = trained
        if state is not None:
            trained.load_state_dict(state["weights"])
        if self.config.activation_checkpointing:
            checkpoint_activations(llm)
        token_dim = llm.get_input_embeddings().embedding_dim
        largest = max(full_size(parameter) for parameter in llm.parameters())
        self.engine = start_engine(
            Stage2Model(llm, trained, self.examples.builder.end),
            trained,
            self.config.learning_rate,
            deepspeed_config(self.config.max_gradient_norm, llm_config, placement, token_dim, largest),
        )
        refuse_deviating(llm, float(self.engine(None)))
        self.frozen_checksum = checksum(llm)
        self.validation = [] if cases is None else self._validation_batches(cases, llm_config.tokens_per_batch)
        self.resume(state)

    def loss_weight(self, examples: np.ndarray) -> int:
        """Target tokens, or prompts."""
        return self.examples.target_tokens(examples) if self.config.loss == "title" else len(examples)

    def round_steps(self) -> int:
        """No validation is passed over."""
        every = self._validation_steps()
        return min(self.config.checkpoint_every_steps, every - self.step % every)

    def due(self) -> bool:
        return super().due() or self.step % self._validation_steps() == 0

    def _validation_steps(self) -> int:
        every = self.config.validate_every_prompts
        return self.total_steps if every is None else max(1, round(every / self.config.batch_size))

    def rounds(self) -> Iterator[dict[str, float]]:
        """A learning curve begins before the first step."""
        if self.step == 0 and self.config.validate_every_prompts is not None:
            metrics = self.validate()
            self.curve = [{self.unit: 0, **metrics}] if metrics else []
        yield from super().rounds()

    def train_step(self, examples: np.ndarray, prompts: Prompts) -> torch.Tensor:
        terms = self.loss_weight(examples)
        total = torch.zeros((), device=self.device)
        passes = self._passes(examples, prompts)
        for number, batch in enumerate(passes, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(passes))
            loss = self._forward(batch)
            # The engine averages gradients over workers; they are to be summed, over the batch's tokens or prompts.
            self.engine.backward(loss * (self.world / terms))
            total += loss.detach()
            self.read += batch.tokens
            self.padded += batch.padded
        self.engine.step()
        return total

    @torch.no_grad()
    def loss(self, examples: np.ndarray, prompts: Prompts) -> float:
        """The mean loss of a global batch, without a step. Every worker must call it."""
        total = torch.stack([self._forward(batch) for batch in self._passes(examples, prompts)]).sum()
        return float(all_reduce_sum(total)) / self.loss_weight(examples)

    def _passes(self, examples: np.ndarray, prompts: Prompts) -> Sequence[Batch | CandidateBatch]:
        """This worker's share of a global batch of the running epoch."""
        budget = self.config.tokens_per_pass
        if self.config.loss == "title":
            return self.examples.passes(examples, prompts, self.rank, self.world, budget)
        return self.examples.candidate_passes(examples, prompts, self.epoch, self.rank, self.world, budget)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Hit@1 and NDCG@10 of all workers' validation cases by trie ranking. Every worker must call it.

        Workers must run the same passes: one that has none left repeats its last.
        """
        total_M = torch.zeros(len(METRICS) + 1, dtype=torch.float64, device=self.device)
        for number in range(all_reduce_max(len(self.validation))):
            batch = self.validation[min(number, len(self.validation) - 1)]
            log_p = self.engine(batch, *self._inputs(batch.histories, batch.items, batch.candidates)).float()
            if number < len(self.validation) and batch.counts:
                values_BM = evaluate_scores(batch.order.unshuffled(log_p.numpy()), batch.candidates)
                total_M += torch.from_numpy(np.append(values_BM.sum(axis=0), len(values_BM))).to(self.device)
        return mean_metrics(total_M)

    def _validation_batches(self, cases: ValidationCases, tokens_per_batch: int) -> list[ValidationBatch]:
        """This worker's validation cases in batches; where it has none, one that does not count."""
        builder = self.examples.builder
        if not len(cases):
            one = np.zeros(1, dtype=np.int64)
            histories, candidates = self.examples.histories(one), self.examples.candidates(one, 0)
            return [ValidationBatch.of(builder, histories, candidates, self.examples.seed, counts=False)]
        lengths = builder.build(cases.histories, cases.candidates).lengths
        return [
            ValidationBatch.of(builder, cases.histories.take(rows), cases.candidates[rows], self.examples.seed)
            for rows in token_budget_batches(lengths, tokens_per_batch)
        ]

    def _forward(self, batch: Batch | CandidateBatch) -> torch.Tensor:
        """The summed loss of a pass, float32 ()."""
        candidates = batch.candidates if isinstance(batch, CandidateBatch) else None
        inputs = self._inputs(self.examples.histories(batch.examples), batch.items, candidates)
        found = self.engine(batch, *inputs)
        if isinstance(batch, Batch):
            return found
        return -(self._wanted(batch) * batch.counts * found).sum().float().to(self.device)

    def _inputs(
        self, histories: Sequences, items: np.ndarray, candidates: np.ndarray | None
    ) -> tuple[torch.Tensor, ...]:
        """What the soft tokens of these users, before these candidates, and of these items are made of."""
        return ()

    def _wanted(self, batch: CandidateBatch) -> torch.Tensor:
        """The distribution over the candidates that the LLM is to have, float64 (B, C): the target."""
        target_B = torch.from_numpy(self.examples.targets[batch.examples]).long()
        return (torch.from_numpy(batch.candidates).long() == target_B[:, None]).double()

    def idle_step(self) -> None:
        examples, prompts = self.examples.global_batch(0, 0, 1)
        self.engine.backward(self._forward(self._passes(examples, prompts)[0]) * 0)
        self.engine.step()
