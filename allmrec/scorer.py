"""A bundle together with its LLM, ready to score: what the nightly run and the evaluation share.

Knows how x_u and the items' joint embeddings become soft tokens (paper equation 7); leaves the prompt and the trie to
`allmrec.llm` and what to do with the scores to the callers.

Dimensions: B users, C candidates, D teacher, H token dimension, N = n + 1 items
"""

from functools import cached_property
from typing import Any

import numpy as np
import torch

from allmrec.bundle import Bundle
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import SoftTokens
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer, max_positions
from allmrec.llm.prompt import PromptBuilder, Titles
from allmrec.llm.ranking import Ranker


class Scorer:
    """Scores candidates with the teacher and with the LLM, which is loaded when first needed.

    Works on the GPU where there is one.
    """

    def __init__(self, bundle: Bundle, llm: LLMConfig):
        self.bundle, self.config = bundle, llm
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.teacher = bundle.teacher.to(self.device)
        self.projectors, self.untrained = (part.to(self.device) for part in (bundle.projectors, bundle.untrained))
        self._rankers: dict[bool, Ranker] = {}
        self._item_tokens: dict[tuple[bool, bool], torch.Tensor] = {}

    @cached_property
    def llm(self) -> torch.nn.Module:
        return load_llm(self.config).to(self.device)

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

    def spent(self) -> dict[str, int]:
        """Tokens read so far, padding among them, and what over-long prompts lost; see `Ranker`."""
        names = ("tokens", "padding", "dropped_history", "cut_titles")
        return {name: sum(getattr(ranker, name) for ranker in self._rankers.values()) for name in names}

    @torch.inference_mode()
    def item_tokens(self, text: bool = False, untrained: bool = False) -> torch.Tensor:
        """O_i = F_I(e_i) of the whole catalogue, (N, H) (paper equation 7); see `llm_scores`."""
        if (text, untrained) not in self._item_tokens:
            network = (self.untrained if untrained else self.projectors).item
            self._item_tokens[text, untrained] = network(self.bundle.item_inputs(text).to(self.device))
        return self._item_tokens[text, untrained]

    @torch.inference_mode()
    def soft_tokens(self, x_BD: torch.Tensor, text: bool = False, untrained: bool = False) -> SoftTokens:
        """O_u = F_U(x^u) and O_i; see `llm_scores`."""
        user = (self.untrained if untrained else self.projectors).user
        return SoftTokens(user(x_BD), self.item_tokens(text, untrained))

    def represent(self, histories: Sequences) -> torch.Tensor:
        """x^u, (B, D)."""
        return self.teacher.represent(histories)

    @torch.inference_mode()
    def teacher_scores(self, x_BD: torch.Tensor, candidates_BC: np.ndarray) -> np.ndarray:
        """s(x^u, E_i), float32 (B, C)."""
        return self.teacher.scores(x_BD, torch.from_numpy(candidates_BC).long().to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def llm_scores(
        self,
        x_BD: torch.Tensor,
        histories: Sequences,
        candidates_BC: np.ndarray,
        text: bool = False,
        untrained: bool = False,
    ) -> np.ndarray:
        """log P of every candidate, float32 (B, C), with O_u = F_U(x^u) in the prompt; see `Ranker`.

        Args:
            candidates_BC: in the order that the prompt shows them; zeros are no candidates.
            text: the text form q_i of all items instead of e_i.
            untrained: by F_U and F_I as Stage-2 started.
        """
        return self.ranker(True).log_probabilities(histories, candidates_BC, self.soft_tokens(x_BD, text, untrained))
