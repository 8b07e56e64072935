"""RECFORMER as a teacher: items have stored vectors, users are read by the encoder, the score is their cosine.

So it works wherever a teacher does: evaluation, the whole catalogue, retrieval.

Dimensions: U users, N = n + 1 items (0 is padding), L words of a sentence, D of the encoder's states
"""

import torch

from allmrec.cf.known_users import KnownUsers
from allmrec.cf.teacher import Teacher
from allmrec.core.rows import Rows, Table, shared
from allmrec.data.sequences import Sequences
from allmrec.recformer.network import Recformer, read
from allmrec.recformer.sentences import Sentences


class RecformerTeacher(Teacher):
    """Vectors of items and of users have unit length. Users of the last call are known, see `KnownUsers`."""

    def __init__(
        self,
        network: Recformer,
        sentences: Sentences,
        vectors_ND: torch.Tensor,
        tokens_per_pass: int,
        new_NL: Table | None = None,
    ):
        """
        Args:
            vectors_ND: the items'; zeros for padding.
            tokens_per_pass: padded tokens in one forward pass.
            new_NL: sentences of the items that are new when it takes other items; those without are not read.
        """
        super().__init__()
        self.network, self.sentences, self.new_NL = network, sentences, new_NL
        self.tokens_per_pass = tokens_per_pass
        self.register_buffer("vectors", vectors_ND, persistent=False)
        self._known = KnownUsers()

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.get_buffer("vectors")

    @torch.inference_mode()
    def represent(self, histories: Sequences) -> torch.Tensor:
        return self._known.represent(
            histories.last(self.sentences.max_items),
            self.item_embeddings.new_zeros(len(histories), self.item_embeddings.shape[1]),
            lambda users: read(self.network, self.sentences, users, self.tokens_per_pass),
        )

    def take_items(self, rows_N: torch.Tensor, new_ND: Table) -> None:
        self.vectors = shared(Rows.of(new_ND).where(rows_N == 0, Rows.of(self.item_embeddings).take(rows_N)))
        self.sentences = self.sentences.take(rows_N, self.new_NL)
