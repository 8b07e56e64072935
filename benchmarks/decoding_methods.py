"""Ways to have one LLM choose among a case's candidates, side by side: what `benchmarks.nightly` measures.

Dimensions: B cases, C candidates (the target first), T tokens, H token dimension
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from allmrec.data.cases import Cases
from allmrec.evaluation.systems import Systems
from allmrec.llm.batches import SoftTokens, take
from allmrec.llm.generation import Generator, left_padded, named_by_text
from allmrec.llm.prompt import PromptBuilder
from allmrec.llm.ranking import Ranker
from allmrec.metrics import METRICS, evaluate_scores
from allmrec.model import ALLMRec
from benchmarks.title_likelihood import TitleLikelihood

TRIE, LIKELIHOOD, CONSTRAINED, FREE = "trie ranking", "title likelihood", "constrained decoding", "free generation"
GENERATE, GENERATE_BATCH = "generate()", 4
LISTED, BEAMS = "generate(), ten by beam search", 10


@dataclass(frozen=True)
class Chosen:
    """What came of some cases."""

    hit_B: np.ndarray  # float64: 1 for the target, a part for a title that it shares, 0
    tokens: int  # read, those generated among them
    padding: int
    unnamed: int  # texts that name no candidate


class Ways:
    """Each by its name: a function from cases to what was chosen."""

    def __init__(self, model: ALLMRec, seed: int, llm: Any = None, longest: int | None = None):
        """
        Args:
            llm: another one than the model's; its soft tokens are zeros.
            longest: text that is generated, in tokens; by default a title of the longest kind and the end token.
        """
        self.model, self.systems = model, Systems(model, seed)
        self.llm: Any = llm or model.llm
        builder = model.ranker(soft=True).builder
        assert isinstance(builder, PromptBuilder)
        self.builder, self.budget = builder, model.config.tokens_per_batch
        self.longest = longest or int(builder.titles.lengths.max()) + 1
        self.by_name: dict[str, Callable[[Cases], Chosen]] = {
            TRIE: self.trie,
            LIKELIHOOD: self.likelihood,
            CONSTRAINED: self.constrained,
            FREE: self.free,
            GENERATE: self.generate,
            LISTED: partial(self.generate, beams=BEAMS),
        }

    def trie(self, cases: Cases) -> Chosen:
        ranker = Ranker(self.llm, self.builder, self.budget)
        return self._best(cases, ranker.log_probabilities, ranker)

    def likelihood(self, cases: Cases) -> Chosen:
        likelihood = TitleLikelihood(self.llm, self.builder, self.budget)
        return self._best(cases, likelihood.log_likelihoods, likelihood)

    def constrained(self, cases: Cases) -> Chosen:
        shown_BC, soft = self.shown(cases)
        prompts = self.builder.build(cases.histories, shown_BC)
        generator = Generator(self.llm, self.builder.end, self.budget)
        named_BC = generator.constrained(prompts, soft, self.builder.titles, shown_BC)
        return _named(cases, shown_BC, named_BC, generator.tokens, generator.padding)

    def free(self, cases: Cases) -> Chosen:
        shown_BC, soft = self.shown(cases)
        prompts = self.builder.build(cases.histories, shown_BC)
        generator = Generator(self.llm, self.builder.end, self.budget)
        texts = generator.free(prompts, soft, self.longest)
        named_BC = named_by_text(texts, self.model.tokenizer, self.builder.titles, shown_BC)
        return _named(cases, shown_BC, named_BC, generator.tokens, generator.padding)

    @torch.inference_mode()
    def generate(self, cases: Cases, beams: int = 1) -> Chosen:
        """Rows whose text has ended continue as padding, and count as tokens: they cost as much.

        Args:
            beams: texts for every user, of which the likeliest counts as chosen.
        """
        shown_BC, soft = self.shown(cases)
        prompts = self.builder.build(cases.histories, shown_BC)
        end, tokens, padding, texts = self.builder.end, 0, 0, list[list[int]]()
        for first in range(0, len(cases), GENERATE_BATCH):
            rows = np.arange(first, min(first + GENERATE_BATCH, len(cases)))
            embeds_BTH, mask_BT = left_padded(self.llm, take(prompts, rows), soft.of(rows), end)
            written_BT = self.llm.generate(
                inputs_embeds=embeds_BTH,
                attention_mask=mask_BT,
                max_new_tokens=self.longest,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                eos_token_id=end,
                pad_token_id=end,
            )
            texts += [text[: [*text, end].index(end)] for text in written_BT[::beams].tolist()]
            tokens += int(mask_BT.sum()) + written_BT.numel()
            padding += int((mask_BT == 0).sum())
        named_BC = named_by_text(texts, self.model.tokenizer, self.builder.titles, shown_BC)
        return _named(cases, shown_BC, named_BC, tokens, padding)

    @torch.inference_mode()
    def shown(self, cases: Cases) -> tuple[np.ndarray, SoftTokens]:
        """The candidates in the order that prompts show them, and what goes into the slots."""
        shown_BC = self.systems.shown_order(cases).shown(cases.candidates_BC)
        if self.llm is self.model.llm:
            return shown_BC, self.model.soft_tokens(self.model.represent(cases.histories), cases.candidates_BC)
        weight, num_items = self.llm.get_input_embeddings().weight, self.model.bundle.catalogue.num_items
        rows_B, rows_N = (weight.new_zeros(count, weight.shape[1]) for count in (len(cases), num_items + 1))
        return shown_BC, SoftTokens(rows_B, rows_N)

    def _best(self, cases: Cases, score: Callable[..., np.ndarray], read: Any) -> Chosen:
        shown_BC, soft = self.shown(cases)
        scores_BC = self.systems.shown_order(cases).unshuffled(score(cases.histories, shown_BC, soft))
        hit_B = evaluate_scores(scores_BC, cases.candidates_BC)[:, METRICS.index("hit@1")]
        return Chosen(hit_B, read.tokens, read.padding, unnamed=0)


def _named(cases: Cases, shown_BC: np.ndarray, named_BC: np.ndarray, tokens: int, padding: int) -> Chosen:
    right_B = (named_BC & (shown_BC == cases.candidates_BC[:, :1])).any(axis=1)
    count_B = named_BC.sum(axis=1)
    return Chosen(right_B / np.maximum(count_B, 1), tokens, padding, unnamed=int((count_B == 0).sum()))
