"""Hit@1 by what an LLM writes, the paper's own way of recommending (section 4.2.2): protocol "generation".

Ranking always names a candidate; free text may name none, so an LLM that never learnt the task may score below
chance (LLM-Only in the paper's Table 1). The target is hit where the answer is its title and nothing else, and in
the wider reading where its title appears anywhere in the answer.

Dimensions: B cases, C candidates (the target first), M metrics
"""

import numpy as np
import polars as pl

from allmrec.data.cases import Cases
from allmrec.evaluation.systems import Systems
from allmrec.llm.generation import Generator, named_by_text
from allmrec.llm.prompt import PromptBuilder


class Answers:
    """Lets LLM systems write.

    Attributes:
        spent: tokens read and written so far, padding, and what over-long prompts lost; as of `ALLMRec.spent`.
    """

    def __init__(self, systems: Systems):
        self.systems, self.model = systems, systems.model
        self.spent = {"tokens": 0, "padding": 0, "dropped_history": 0, "cut_titles": 0}

    def evaluate(self, system: str, cases: Cases) -> tuple[np.ndarray, np.ndarray]:
        """Metrics `results.WRITTEN` of every case, float64 (B, M), and how many others have the target's title, (B,).

        An answer that is the title of several candidates is worth its share, as a tie is in ranking.
        """
        texts = self._written(system, cases)
        titles, tokenizer = self.model.titles, self.model.tokenizer
        named_BC = named_by_text(texts, tokenizer, titles, cases.candidates_BC)
        target_B = cases.candidates_BC[:, 0]
        title_tokens = [titles.tokens[titles.offsets[item] : titles.offsets[item + 1]] for item in target_B.tolist()]
        frame = pl.DataFrame(
            {
                "answer": tokenizer.batch_decode(texts, skip_special_tokens=True),
                "title": tokenizer.batch_decode(title_tokens, skip_special_tokens=True),
            },
            schema={"answer": pl.String, "title": pl.String},
        ).with_columns(pl.all().str.strip_chars())
        hit = frame.select(
            exact=pl.col("answer") == pl.col("title"),
            within=(pl.col("title") != "") & pl.col("answer").str.contains(pl.col("title"), literal=True),
        )
        same_BC = titles.group[cases.candidates_BC] == titles.group[target_B][:, None]
        tied_B = (same_BC & (cases.candidates_BC > 0)).sum(axis=1) - 1
        exact_B = hit["exact"].to_numpy() / (tied_B + 1)
        return np.column_stack([named_BC.any(axis=1), exact_B, hit["within"].to_numpy()]).astype(np.float64), tied_B

    def _written(self, system: str, cases: Cases) -> list[list[int]]:
        """Tokens of each answer: at most those of a longest title and the end token."""
        soft = self.systems.soft_tokens(system, cases)
        builder = self.model.ranker(soft is not None).builder
        assert isinstance(builder, PromptBuilder)
        shown_BC = self.systems.shown_order(cases).shown(cases.candidates_BC)
        prompts = builder.build(cases.histories, shown_BC)
        generator = Generator(self.model.llm, builder.end, self.model.config.tokens_per_batch)
        with self.systems.weights_of(system):
            texts = generator.free(prompts, soft, int(builder.titles.lengths.max()) + 1)
        spent = (generator.tokens, generator.padding, prompts.dropped_history, prompts.cut_titles)
        for name, count in zip(self.spent, spent, strict=True):
            self.spent[name] += count
        return texts
