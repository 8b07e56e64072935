"""Ways to have one LLM choose among a case's candidates, side by side: what `benchmarks.nightly` measures.

Dimensions: B cases, C candidates (the target first), T tokens, H token dimension
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from allmrec.evaluation.metrics import METRICS, measure
from allmrec.evaluation.systems import Cases, Systems
from allmrec.llm.batches import SoftTokens, take
from allmrec.llm.generation import Generator, left_padded, named_by_text
from allmrec.llm.likelihood import TitleLikelihood
from allmrec.llm.prompt import PromptBuilder
from allmrec.llm.ranking import Ranker
from allmrec.scorer import Scorer

TRIE, LIKELIHOOD, CONSTRAINED, FREE = "trie ranking", "title likelihood", "constrained decoding", "free generation"
STRAIGHT, STRAIGHT_BATCH = "generate()", 4


@dataclass
class Read:
    """What was read; rows that go on as padding once they have ended count, as they cost."""

    tokens: int = 0
    padding: int = 0


Chosen = tuple[np.ndarray, Any, int]


class Ways:
    """Cases → who is hit, float64 (B,), what was read (`tokens` and `padding`), and how many texts named nobody."""

    def __init__(self, scorer: Scorer, seed: int, llm: Any = None, longest: int | None = None):
        """
        Args:
            llm: another one than the scorer's; its soft tokens are zeros.
            longest: text that is generated, in tokens; by default a title of the longest kind and the end token.
        """
        self.scorer, self.systems = scorer, Systems(scorer, seed)
        self.llm: Any = llm or scorer.llm
        builder = scorer.ranker(soft=True).builder
        assert isinstance(builder, PromptBuilder)
        self.builder, self.budget = builder, scorer.config.tokens_per_batch
        self.longest = longest or builder.config.max_title_tokens + 1
        self.by_name: dict[str, Callable[[Cases], Chosen]] = {
            TRIE: self.trie,
            LIKELIHOOD: self.likelihood,
            CONSTRAINED: self.constrained,
            FREE: self.free,
            STRAIGHT: self.straight,
        }

    def trie(self, cases: Cases) -> Chosen:
        ranker = Ranker(self.llm, self.builder, self.budget)
        return self._best(cases, ranker.log_probabilities), ranker, 0

    def likelihood(self, cases: Cases) -> Chosen:
        likelihood = TitleLikelihood(self.llm, self.builder, self.budget)
        return self._best(cases, likelihood.log_likelihoods), likelihood, 0

    def constrained(self, cases: Cases) -> Chosen:
        shown_BC, soft = self._shown(cases)
        generator = Generator(self.llm, self.builder.end, self.budget)
        prompts = self.builder.build(cases.histories, shown_BC)
        named_BC = generator.constrained(prompts, soft, self.builder.titles, shown_BC)
        return self._hit(cases, shown_BC, named_BC), generator, nobody(named_BC)

    def free(self, cases: Cases) -> Chosen:
        shown_BC, soft = self._shown(cases)
        generator = Generator(self.llm, self.builder.end, self.budget)
        texts = generator.free(self.builder.build(cases.histories, shown_BC), soft, self.longest)
        named_BC = named_by_text(texts, self.scorer.tokenizer, self.builder.titles, shown_BC)
        return self._hit(cases, shown_BC, named_BC), generator, nobody(named_BC)

    @torch.inference_mode()
    def straight(self, cases: Cases) -> Chosen:
        llm = self.llm
        shown_BC, soft = self._shown(cases)
        prompts = self.builder.build(cases.histories, shown_BC)
        texts: list[list[int]] = []
        read = Read()
        for first in range(0, len(cases), STRAIGHT_BATCH):
            rows = np.arange(first, min(first + STRAIGHT_BATCH, len(cases)))
            embeds_BTH, mask_BT = left_padded(llm, take(prompts, rows), soft.of(rows), self.builder.end)
            written = llm.generate(
                inputs_embeds=embeds_BTH,
                attention_mask=mask_BT,
                max_new_tokens=self.longest,
                do_sample=False,
                eos_token_id=self.builder.end,
                pad_token_id=self.builder.end,
            )
            texts += [[*text, self.builder.end] for text in written.tolist()]
            read.tokens += int(mask_BT.sum()) + written.numel()
            read.padding += int((mask_BT == 0).sum())
        texts = [text[: text.index(self.builder.end)] for text in texts]
        named_BC = named_by_text(texts, self.scorer.tokenizer, self.builder.titles, shown_BC)
        return self._hit(cases, shown_BC, named_BC), read, nobody(named_BC)

    @torch.inference_mode()
    def _shown(self, cases: Cases) -> tuple[np.ndarray, SoftTokens]:
        x_BD = self.scorer.represent(cases.histories)
        shown_BC = np.take_along_axis(cases.candidates_BC, self.systems.shown_order(cases), axis=1)
        user_BH, item_NH = self.scorer.projectors.user(x_BD), self.scorer.item_tokens()
        if self.llm is not self.scorer.llm:
            weight = self.llm.get_input_embeddings().weight
            user_BH, item_NH = (weight.new_zeros(len(rows), weight.shape[1]) for rows in (user_BH, item_NH))
        return shown_BC, SoftTokens(user_BH, item_NH)

    def _best(self, cases: Cases, score: Callable[..., np.ndarray]) -> np.ndarray:
        shown_BC, soft = self._shown(cases)
        scores_BC = np.empty(shown_BC.shape)
        np.put_along_axis(scores_BC, self.systems.shown_order(cases), score(cases.histories, shown_BC, soft), axis=1)
        return measure(scores_BC, cases.candidates_BC)[:, METRICS.index("hit@1")]

    def _hit(self, cases: Cases, shown_BC: np.ndarray, named_BC: np.ndarray) -> np.ndarray:
        """A title that candidates share is worth its part, as in ranking."""
        right_B = (named_BC & (shown_BC == cases.candidates_BC[:, :1])).any(axis=1)
        return right_B / np.maximum(named_BC.sum(axis=1), 1)


def nobody(named_BC: np.ndarray) -> int:
    """How many texts name no candidate."""
    return int((~named_BC.any(axis=1)).sum())
