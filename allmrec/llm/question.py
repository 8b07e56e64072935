"""Questions about a user other than "which item next?", in the recommendation's format (paper section 5.4.4).

The same builder makes the prompts: x_u, the history's titles and slots, and other words around them.
"""

from dataclasses import dataclass

import numpy as np

from allmrec.data.sequences import Sequences
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Prompts, Template, Titles


def favourite(config: PromptConfig, kind: str, gerund: str) -> Template:
    """Which genres, or what else sorts the catalogue (`kind`), does this user like (paper Figure 4)?"""
    return Template(
        f" This user has {config.verb_past}",
        f" in the past. Specify the {kind} this user would enjoy {gerund}",
        ".",
    )


@dataclass(frozen=True)
class Question:
    """A question whose possible answers are not listed in the prompt. A `Ranker` takes it for a `PromptBuilder`."""

    prompts: PromptBuilder
    titles: Titles  # the possible answers, by number; entry 0 is none

    @property
    def soft(self) -> bool:
        return self.prompts.soft

    @property
    def end(self) -> int:
        return self.prompts.end

    def build(self, history: Sequences, candidates: np.ndarray | None = None) -> Prompts:
        """Prompts of B users; whatever the candidates, they are not shown."""
        return self.prompts.build(history, np.zeros((len(history), 0), dtype=np.int32))
