"""Stage-2: the projectors learn to let the frozen LLM know the user and the items (paper section 4.2).

Dimensions: B prompts of a pass, I items in slots, C candidates, D = teacher's dim, J = joint dim, N = n + 1 items
"""

from typing import Any

import numpy as np
import torch

from allmrec.cf.teacher import Teacher
from allmrec.cf.training import ValidationCases
from allmrec.core.rows import Table
from allmrec.data.sequences import Sequences
from allmrec.llm.loading import LLMConfig, Placement
from allmrec.projection.engine import gathered, weights
from allmrec.projection.examples import CandidateBatch, Examples
from allmrec.projection.projectors import ProjectionConfig
from allmrec.projection.stage2 import Stage2Training
from allmrec.projection.start import start
from allmrec.projection.user_inputs import user_inputs


class ProjectionTraining(Stage2Training):
    """A run whose trained part are the projectors; see `Rounds`."""

    remedy = "lower projection.learning_rate, or look for NaN in the artifacts `teacher` and `alignment`"
    config: ProjectionConfig

    def __init__(
        self,
        config: ProjectionConfig,
        llm_config: LLMConfig,
        placement: Placement,
        llm: Any,
        teacher: Teacher,
        e_NJ: Table,
        uses_text_N: torch.Tensor,
        examples: Examples,
        cases: ValidationCases | None = None,
        device: torch.device | str = "cpu",
        state: dict[str, Any] | None = None,
    ):
        """See `Stage2Training.begin`.

        Args:
            e_NJ: what F_I projects, by item index (`item_inputs`).
            uses_text_N: bool, of the items that it knows by their texts alone (`EmbeddingChoice.uses_text_N`).

        Raises:
            ValueError: the LLM's architecture cannot be ranked by tries, or the projectors cannot start as the config
                says; see `start`.
        """
        super().__init__(config, examples, device)
        self.teacher, self.e_NJ = teacher.to(self.device), e_NJ.to(self.device)
        embedding = llm.get_input_embeddings()
        with gathered(embedding.parameters()):
            token_norm, token_dim = embedding.weight.float().norm(dim=1).mean().item(), embedding.weight.shape[1]
            norm, tokens_TH = config.soft_token_scale * token_norm, embedding.weight
            self.projectors = start(config, self.teacher, examples, e_NJ, uses_text_N, token_dim, norm, tokens_TH)
        self.untrained = weights(self.projectors)
        self.begin(llm_config, placement, llm, self.projectors, cases, state)

    def _inputs(
        self, histories: Sequences, items: np.ndarray, candidates: np.ndarray | None
    ) -> tuple[torch.Tensor, ...]:
        """What F_U projects of the histories' users, and F_I of the items."""
        x_BD = self.teacher.represent(histories).clone()  # a clone, for autograd takes no inference tensor
        candidates_BC = None if candidates is None else torch.from_numpy(candidates).long().to(self.device)
        users_BD = user_inputs(self.config, self.teacher, x_BD, candidates_BC).detach()
        return users_BD, self.e_NJ[torch.from_numpy(items).to(self.device)]

    def _wanted(self, batch: CandidateBatch) -> torch.Tensor:
        """The target and the teacher's distribution."""
        wanted_BC = super()._wanted(batch)
        if self.config.distillation:
            x_BD = self.teacher.represent(self.examples.histories(batch.examples))
            candidates_BC = torch.from_numpy(batch.candidates).long()
            score_BC = self.teacher.scores(x_BD, candidates_BC.to(self.device)).detach().cpu().double()
            of_teacher_BC = score_BC.masked_fill(candidates_BC == 0, -torch.inf).softmax(1)
            wanted_BC = wanted_BC.lerp(of_teacher_BC, self.config.distillation)
        return wanted_BC
