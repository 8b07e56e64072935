"""LLM-SRec as a teacher: items have stored vectors, users are read off the LLM, the score is a product.

So whatever works with a teacher works with it: evaluation, the whole catalogue, retrieval. A candidate's score does
not depend on the other candidates, which no prompt lists.

Dimensions: U users, B of a batch, N = n + 1 items (0 is padding), K of what f_I reads, V readout dim
"""

from functools import cached_property
from typing import Any

import numpy as np
import torch

from allmrec.cf.known_users import KnownUsers
from allmrec.cf.teacher import Teacher
from allmrec.core.rows import Rows, Table, shared
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
        items_NK: Table,
        vectors_NV: Table,
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
        self.items_NK, self.stored_NV = Rows.of(items_NK), Rows.of(vectors_NV)
        self.unread = np.zeros(0, dtype=np.int64) if unread is None else unread
        self.tokens = self.padding = self.dropped_history = self.cut_titles = 0
        self._known = KnownUsers()

    @cached_property
    def item_embeddings(self) -> torch.Tensor:
        stored_NV = self.stored_NV
        if len(self.unread):
            stored_NV = stored_NV.replaced(torch.from_numpy(self.unread), self.vectors_of(self.unread).cpu())
        return shared(stored_NV).to(self._device)

    @property
    def _device(self) -> torch.device:
        return self.readout.tokens.weight.device

    @torch.inference_mode()
    def represent(self, histories: Sequences) -> torch.Tensor:
        return self._known.represent(
            histories.last(self.prompts.users.config.max_history),
            torch.zeros(len(histories), self.stored_NV.shape[1], device=self._device),
            lambda users: self._read(USER, self.prompts.of_users(users)),
        )

    @torch.inference_mode()
    def vectors_of(self, items: np.ndarray) -> torch.Tensor:
        """What the LLM says of items now, (U, V): of new ones, or to compare with the stored vectors."""
        return self._read(ITEM, self.prompts.of_items(items))

    def _read(self, kind: int, prompts: Prompts) -> torch.Tensor:
        self.dropped_history += prompts.dropped_history
        self.cut_titles += prompts.cut_titles
        found_UV = torch.empty(len(prompts), self.stored_NV.shape[1], device=self._device)

        def read_batch(rows: np.ndarray) -> None:
            items, here = distinct_items(take(prompts, rows))
            inputs_IK = self.items_NK[torch.from_numpy(items.astype(np.int64))].to(self._device)
            soft_IH, token_H = self.readout.soft_tokens(inputs_IK), self.readout.token(kind)
            states_BH = on_all_ranks(read_out, self.llm, here, token_H, soft_IH, self.prompts.padding)
            found_UV[torch.from_numpy(rows)] = self.readout.vectors(kind, states_BH)
            read = len(here.tokens) + len(here)
            self.tokens += read
            self.padding += len(here) * (int(here.lengths.max()) + 1) - read

        self.budget.each_batch(prompts.lengths + 1, read_batch)
        return found_UV
