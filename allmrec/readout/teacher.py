"""LLM-SRec as a teacher: items have stored vectors, users are read off the LLM, the score is a product.

So whatever works with a teacher works with it: evaluation, the whole catalogue, retrieval. A candidate's score does
not depend on the other candidates, which no prompt lists.

Dimensions: U users, B of a batch, N = n + 1 items (0 is padding), K of what f_I reads, V readout dim
"""

from typing import Any

import numpy as np
import torch

from allmrec.cf.known_users import KnownUsers
from allmrec.cf.teacher import Teacher
from allmrec.data.sequences import Sequences
from allmrec.llm.batches import TokenBudget, distinct_items, take
from allmrec.llm.prompt import Prompts
from allmrec.llm.tensor_parallel import on_all_ranks
from allmrec.readout.network import ITEM, USER, Readout
from allmrec.readout.prompts import ReadoutPrompts, read_out


class LLMSRec(Teacher):
    """Represents users by the frozen LLM.

    A user who is asked about again with the same history, by another protocol of an evaluation, costs nothing. Items
    without a vector are read when the items' vectors are first asked for.

    Attributes:
        tokens, padding: real and padding tokens read so far.
        dropped_history, cut_titles: how much over-long prompts lost so far.
    """

    def __init__(
        self,
        llm: Any,
        readout: Readout,
        prompts: ReadoutPrompts,
        items_NK: torch.Tensor,
        vectors_NV: torch.Tensor,
        tokens_per_batch: int,
        unread: np.ndarray | None = None,
    ):
        """
        Args:
            items_NK: `ReadoutConfig.item_input`, for the items' soft tokens.
            vectors_NV: the items' own, which were made after training.
            tokens_per_batch: padded tokens in one forward pass.
            unread: indices of the items that have no vector yet; by default none.
        """
        super().__init__()
        self.llm, self.readout, self.prompts, self.budget = llm, readout, prompts, TokenBudget(tokens_per_batch)
        self.register_buffer("inputs", items_NK, persistent=False)
        self.register_buffer("vectors", vectors_NV, persistent=False)
        self.unread = np.zeros(0, dtype=np.int64) if unread is None else unread
        self.tokens = self.padding = self.dropped_history = self.cut_titles = 0
        self._known = KnownUsers()

    @property
    def item_embeddings(self) -> torch.Tensor:
        if len(self.unread):
            unread, self.unread = self.unread, self.unread[:0]
            self.get_buffer("vectors")[unread] = self.vectors_of(unread)
        return self.get_buffer("vectors")

    @torch.inference_mode()
    def represent(self, histories: Sequences) -> torch.Tensor:
        vectors = self.get_buffer("vectors")
        return self._known.represent(
            histories.last(self.prompts.users.config.max_history),
            vectors.new_zeros(len(histories), vectors.shape[1]),
            lambda users: self._read(USER, self.prompts.of_users(users)),
        )

    @torch.inference_mode()
    def vectors_of(self, items: np.ndarray) -> torch.Tensor:
        """What the LLM says of items now, (U, V): of new ones, or to compare with the stored vectors."""
        return self._read(ITEM, self.prompts.of_items(items))

    def _read(self, kind: int, prompts: Prompts) -> torch.Tensor:
        self.dropped_history += prompts.dropped_history
        self.cut_titles += prompts.cut_titles
        found_UV = self.get_buffer("vectors").new_empty(len(prompts), self.get_buffer("vectors").shape[1])

        def read_batch(rows: np.ndarray) -> None:
            items, here = distinct_items(take(prompts, rows))
            inputs_IK = self.get_buffer("inputs")[torch.from_numpy(items.astype(np.int64))]
            soft_IH, token_H = self.readout.soft_tokens(inputs_IK), self.readout.token(kind)
            states_BH = on_all_ranks(read_out, self.llm, here, token_H, soft_IH, self.prompts.padding)
            found_UV[torch.from_numpy(rows)] = self.readout.vectors(kind, states_BH)
            read = len(here.tokens) + len(here)
            self.tokens += read
            self.padding += len(here) * (int(here.lengths.max()) + 1) - read

        self.budget.each_batch(prompts.lengths + 1, read_batch)
        return found_UV
