"""The task favourite-genre: what LLM-Only and A-LLMRec say that a user likes best (paper section 5.4.4, Figure 4).

Both are asked twice: freely, as in the paper, and for the most probable of the catalogue's own categories, which an LLM
too small to write a sentence can answer, too.

Dimensions: U users, G categories, H token dimension
"""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from allmrec.core.settings import Section
from allmrec.data.sequences import Sequences, offsets_of
from allmrec.explain.categories import Categories
from allmrec.llm.batches import SoftTokens
from allmrec.llm.generation import Generator, normalised
from allmrec.llm.loading import max_positions
from allmrec.llm.prompt import PromptBuilder, Titles
from allmrec.llm.question import Question, favourite
from allmrec.llm.ranking import Ranker
from allmrec.model import ALLMRec
from schemas.explanations import SCHEMA

SYSTEMS = {"llm-only": False, "a-llmrec": True}  # name → whether its prompt has soft tokens


class ExplainConfig(Section):
    """The favourite-genre task; what an item is called and done with comes from the section `prompt`."""

    kind: str = "genres"  # what the prompt calls the catalogue's categories
    gerund: str | None = None  # "... this user would enjoy watching"; default: `prompt.verb` and -ing
    max_categories: int = Field(50, ge=2)  # how many of the most frequent ones an answer is chosen from
    max_new_tokens: int = Field(24, ge=1)  # of a free answer, at most


class FavouriteGenre:
    """Asks for users' favourites."""

    def __init__(self, model: ALLMRec, categories: Categories, config: ExplainConfig):
        self.model, self.categories, self.config = model, categories, config
        prompt = model.bundle.prompt
        names = Titles.tokenise(categories.names, model.tokenizer, prompt.max_title_tokens)
        room = max_positions(model.llm) - max(config.max_new_tokens, int(names.lengths.max()) + 1)
        words = favourite(prompt, config.kind, config.gerund or f"{prompt.verb}ing")
        self.questions = {
            system: Question(PromptBuilder(prompt, model.tokenizer, model.titles, soft, room, words), names)
            for system, soft in SYSTEMS.items()
        }

    @torch.inference_mode()
    def ask(self, users: Sequences) -> pa.Table:
        """Rows of `explanations`: every system's answers on every user, in the users' order."""
        soft = self.model.soft_tokens(self.model.represent(users), None)
        favourites_UG = self.categories.favourites(users)
        answers = [
            self._answered(system, users, soft if question.soft else None, favourites_UG)
            for system, question in self.questions.items()
        ]
        order = np.arange(len(answers) * len(users)).reshape(len(answers), -1).T.ravel()
        return pa.concat_tables(answers).take(pa.array(order))

    def _answered(self, system: str, users: Sequences, soft: SoftTokens | None, favourites_UG: np.ndarray) -> pa.Table:
        model, question, count = self.model, self.questions[system], self.categories.count
        budget = model.config.tokens_per_batch
        generator = Generator(model.llm, question.end, budget)
        tokens = generator.free(question.build(users), soft, self.config.max_new_tokens)
        texts = model.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        every_UG = np.tile(np.arange(1, count + 1, dtype=np.int32), (len(users), 1))
        log_p_UG = Ranker(model.llm, question, budget).log_probabilities(users, every_UG, soft)
        chosen_U = log_p_UG.argmax(axis=1)
        shown = users.last(model.bundle.prompt.max_history)
        liked = self.categories.names.take(pa.array(np.nonzero(favourites_UG)[1] + 1))
        favourites = _lists(liked, favourites_UG.sum(axis=1))
        columns: dict[str, Any] = {
            "user_id": users.user_ids,
            "system": [system] * len(users),
            "history": _lists(model.bundle.catalogue.titles.take(pa.array(shown.items)), shown.lengths),
            "favourites": favourites,
            "text": [text.strip() for text in texts],
            "names_favourite": names_one(texts, favourites),
            "choice": self.categories.names.take(pa.array(chosen_U + 1)),
            "chose_favourite": favourites_UG[np.arange(len(users)), chosen_U],
            "probability": (np.exp(log_p_UG) * favourites_UG).sum(axis=1).astype(np.float32),
            "chance": favourites_UG.mean(axis=1, dtype=np.float32),
        }
        return pa.table(columns, schema=SCHEMA)


def names_one(texts: list[str], names: pa.Array) -> list[bool]:
    """Whether each text holds one of its row's names, as whole words."""
    return [
        any(name in text for name in _words(wanted))
        for text, wanted in zip(_words(texts), names.to_pylist(), strict=True)
    ]


def _words(texts: list[str]) -> list[str]:
    """Words alone, with a space before and behind each."""
    plain = normalised(pa.array(texts, pa.string())).to_pylist()
    return [" " + " ".join(re.findall(r"\w+", text)) + " " for text in plain]


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets_of(lengths), pa.int32()), values)
