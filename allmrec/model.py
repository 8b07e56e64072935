"""A bundle together with its LLM, ready to score: what the nightly run, its blend and the evaluation share.

Knows how x_u and the items' joint embeddings become soft tokens (paper equation 7), that the LLM is shown the
candidates in a drawn order, and how equal scores are ordered; leaves the prompt and the trie to `allmrec.llm` and what
to do with the scores to the callers.

Dimensions: B users, C candidates, D teacher, N = n + 1 items
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch

from allmrec.bundle.loading import Bundle
from allmrec.cf.teacher import Teacher
from allmrec.core.rows import Rows, Table
from allmrec.data.sequences import Sequences
from allmrec.llm.adapter import Adapter, load_adapter
from allmrec.llm.batches import SoftTokens
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer, max_positions
from allmrec.llm.prompt import PromptBuilder, Titles
from allmrec.llm.ranking import Ranker
from allmrec.llm.shown_order import ShownOrder
from allmrec.llm.tensor_parallel import load_llm_in_parts
from allmrec.projection.item_tokens import ItemTokens
from allmrec.projection.user_inputs import user_inputs
from allmrec.readout.network import Readout, load_readout
from allmrec.readout.prompts import ReadoutPrompts
from allmrec.readout.teacher import LLMSRec


class ALLMRec:
    """Scores candidates with the teacher and with the LLM, which is loaded when first needed.

    Works on the GPU where there is one.
    """

    def __init__(self, bundle: Bundle, llm: LLMConfig, merged: bool = False, gpus: int = 1):
        """
        Args:
            merged: TALLRec's low-rank weights become a part of the LLM's when that is loaded: it is TALLRec alone then,
                and as fast as the LLM.
            gpus: of this process, over which the LLM is cut; see `allmrec.llm.tensor_parallel`.
        """
        self.bundle, self.config, self.merged, self.gpus = bundle, llm, merged, gpus
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher = bundle.teacher.to(self.device)
        self.projectors, self.untrained = (part.to(self.device) for part in (bundle.projectors, bundle.untrained))
        self._rankers: dict[bool, Ranker] = {}
        self._teachers: dict[str, Teacher] = {}  # of the bundle's systems
        self._item_tokens: dict[tuple[bool, bool], ItemTokens] = {}

    @cached_property
    def llm(self) -> Any:
        if self.gpus > 1:
            return load_llm_in_parts(self.config, self.gpus)
        llm = load_llm(self.config).to(self.device)
        if self.merged:
            load_adapter(self.bundle.systems["tallrec"], llm).merge(llm)
        return llm

    @cached_property
    def adapter(self) -> Adapter:
        """TALLRec's, switched off within the LLM."""
        return load_adapter(self.bundle.systems["tallrec"], self.llm)

    def tallrec(self) -> AbstractContextManager[None]:
        """Within it the LLM's weights are TALLRec's."""
        return nullcontext() if self.merged else self.adapter.switched_on()

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.config)

    @cached_property
    def titles(self) -> Titles:
        return Titles.tokenise(self.bundle.catalogue.titles, self.tokenizer, self.bundle.prompt.max_title_tokens)

    def ranker(self, soft: bool) -> Ranker:
        """The ranker whose prompts have slots, or the text-only one (LLM-Only)."""
        if soft not in self._rankers:
            prompt = self.bundle.prompt
            builder = PromptBuilder(prompt, self.tokenizer, self.titles, soft, max_positions(self.llm))
            self._rankers[soft] = Ranker(self.llm, builder, self.config.tokens_per_batch)
        return self._rankers[soft]

    def by_name(self, name: str) -> Teacher:
        """The teacher, or a system of the bundle that scores as one."""
        if name == "teacher":
            return self.teacher
        return self.llm_srec if name == "llm-srec" else self._teacher_beside(name)

    @torch.inference_mode()
    def scores_by(self, name: str, histories: Sequences, candidates_BC: np.ndarray) -> np.ndarray:
        """The scores of the teacher, or of a system that scores as one: float32 (B, C)."""
        teacher = self.by_name(name)
        items_BC = torch.from_numpy(candidates_BC).long().to(self.device)
        return teacher.scores(teacher.represent(histories), items_BC).cpu().numpy()

    @cached_property
    def readout(self) -> tuple[Readout, Rows]:
        """LLM-SRec's weights, and the vectors of the items that it was trained on, (N, V): zeros for the others."""
        readout, trained_NV = load_readout(self.bundle.systems["llm-srec"])
        return readout, trained_NV.take(self.bundle.rows_N)

    def _teacher_beside(self, name: str) -> Teacher:
        if name not in self._teachers:
            self._teachers[name] = self.bundle.teacher_beside(name).to(self.device)
        return self._teachers[name]

    @cached_property
    def llm_srec(self) -> LLMSRec:
        """It reads items that are new since training by their titles, and q_i or the E_i that it stands for."""
        readout, vectors_NV = self.readout
        prompts = ReadoutPrompts(self.bundle.prompt, self.tokenizer, self.titles, max_positions(self.llm))
        items_NK: Table = self.teacher.item_embeddings
        if readout.item_input == "joint":
            items_NK = self.bundle.joint_embeddings()
        new, budget = self.bundle.new_N.nonzero()[:, 0].numpy(), self.config.tokens_per_batch
        inputs_NK = items_NK.to(self.device)
        return LLMSRec(self.llm, readout, prompts, inputs_NK, vectors_NV, budget, new).to(self.device)

    def spent(self) -> dict[str, int]:
        """Tokens read so far, padding among them, what over-long prompts lost, how often the device lacked memory."""
        names = ("tokens", "padding", "dropped_history", "cut_titles")
        readers: list[Any] = [*self._rankers.values(), *([self.llm_srec] if "llm_srec" in self.__dict__ else [])]
        spent = {name: sum(getattr(reader, name) for reader in readers) for name in names}
        return spent | {"halved_batches": sum(reader.budget.halvings for reader in readers)}

    def item_tokens(self, text: bool = False, untrained: bool = False) -> ItemTokens:
        """O_i = F_I(e_i) by item index (paper equation 7); see `soft_tokens`."""
        if (text, untrained) not in self._item_tokens:
            projector = (self.untrained if untrained else self.projectors).item
            self._item_tokens[text, untrained] = ItemTokens(projector, self.bundle.item_inputs(text))
        return self._item_tokens[text, untrained]

    @torch.inference_mode()
    def soft_tokens(
        self, x_BD: torch.Tensor, candidates_BC: np.ndarray | None, text: bool = False, untrained: bool = False
    ) -> SoftTokens:
        """O_u = F_U(x^u) and O_i = F_I(e_i).

        Args:
            candidates_BC: of the prompts, which the users' tokens may depend on (`user_inputs`); None: prompts without.
            text: the text embedding q_i of all items instead of e_i.
            untrained: by F_U and F_I as Stage-2 started.
        """
        user = (self.untrained if untrained else self.projectors).user
        items_BC = None if candidates_BC is None else torch.from_numpy(candidates_BC).long().to(self.device)
        users_BD = user_inputs(self.bundle.projection, self.teacher, x_BD, items_BC)
        return SoftTokens(user(users_BD), self.item_tokens(text, untrained))

    def represent(self, histories: Sequences) -> torch.Tensor:
        """x^u, (B, D)."""
        return self.teacher.represent(histories)

    @torch.inference_mode()
    def teacher_scores(self, x_BD: torch.Tensor, candidates_BC: np.ndarray) -> np.ndarray:
        """s(x^u, E_i), float32 (B, C)."""
        return self.teacher.scores(x_BD, torch.from_numpy(candidates_BC).long().to(self.device)).cpu().numpy()

    def log_probabilities(
        self, histories: Sequences, candidates_BC: np.ndarray, order: ShownOrder, soft: SoftTokens | None
    ) -> np.ndarray:
        """log P of every candidate, float32 (B, C), in the order of the candidates; -inf for zeros.

        Candidates with identical titles stay tied; see `rank`.

        Args:
            order: in which the prompt shows the candidates.
            soft: for the prompt's slots; None for a prompt of text alone (LLM-Only, paper Figure 6).

        Raises:
            ValueError: the LLM gave NaN or inf.
        """
        log_p_BC = self.ranker(soft is not None).log_probabilities(histories, order.shown(candidates_BC), soft)
        return order.unshuffled(log_p_BC)

    @staticmethod
    def rank(scores_BC: np.ndarray, ties_by_BC: np.ndarray | None = None) -> np.ndarray:
        """How many of the row's candidates are worse, int64 (B, C) to compare within a row.

        Args:
            ties_by_BC: orders candidates of equal score, such as those of one title: the teacher's scores, where a
                list must be in one order. By default equal scores stay tied, so that nothing of another model is in
                the figures of an LLM. (1, C) is for every row.
        """
        worse_BC = _worse(scores_BC)
        return worse_BC if ties_by_BC is None else worse_BC * scores_BC.shape[1] + _worse(ties_by_BC)


def _worse(scores_BC: np.ndarray) -> np.ndarray:
    order_BC = np.argsort(scores_BC, axis=1, kind="stable")
    sorted_BC = np.take_along_axis(scores_BC, order_BC, axis=1)
    starts_BC = np.zeros(scores_BC.shape, dtype=np.int64)  # place of the first of equal scores
    starts_BC[:, 1:] = np.where(sorted_BC[:, 1:] != sorted_BC[:, :-1], np.arange(1, scores_BC.shape[1]), 0)
    worse_BC = np.empty_like(starts_BC)
    np.put_along_axis(worse_BC, order_BC, np.maximum.accumulate(starts_BC, axis=1), axis=1)
    return worse_BC
