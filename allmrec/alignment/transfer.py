"""Models of one catalogue on another one, whose interactions nothing has seen (paper section 5.2.5).

Nothing is trained. The paper says that q_i replaces e_i there (section 4.1.4), and not which E_i the teacher reads
histories of. `decoded_items` takes the alignment's decoder: E_i = f_I^dec(q_i). `drawn_items` is what Table 7 describes
the paper's own run: its SASRec is at chance (0.0506 among 20 for 64,073 users, whose standard error is 0.0009), so its
E_i had nothing to do with the items; and A-LLMRec differs from A-LLMRec (SBERT), so its e_i was f_I^enc of those E_i.

Dimensions: N = n + 1 items of the new catalogue (0 is padding), D = teacher.dim, S of texts, J of the joint embeddings
"""

import copy

import numpy as np
import torch

from allmrec.alignment.network import AlignmentNetwork
from allmrec.cf.teacher import SequenceTeacher, Teacher
from allmrec.core.hashing import Draw, draws, key64


@torch.no_grad()
def decoded_items(network: AlignmentNetwork, texts_NS: torch.Tensor) -> torch.Tensor:
    """E_ND of items that have texts alone; row 0 is zeros."""
    items_ND = network.decode_items(network.encode_texts(texts_NS))
    items_ND[0] = 0
    return items_ND


@torch.no_grad()
def read_items(teacher: Teacher, texts_NS: torch.Tensor) -> torch.Tensor | None:
    """E_ND by a teacher that knows items by their texts; row 0 is zeros. None of any other teacher."""
    items_ND = teacher.embed_texts(texts_NS)
    if items_ND is not None:
        items_ND[0] = 0
    return items_ND


def drawn_items(teacher: Teacher, num_rows: int, seed: int) -> torch.Tensor:
    """E_ND of as many items, by draw those of items that the teacher was trained on; row 0 is zeros."""
    trained_ND = teacher.item_embeddings.detach()
    draw_N = draws(np.arange(num_rows, dtype=np.uint64), key64(seed, Draw.TRANSFER_ITEMS), 1)[:, 0]
    items_ND = trained_ND[torch.from_numpy((draw_N % np.uint64(len(trained_ND) - 1)).astype(np.int64) + 1)]
    items_ND[0] = 0
    return items_ND


def with_items(teacher: Teacher, items_ND: torch.Tensor) -> SequenceTeacher:
    """The same teacher, frozen, for other items.

    Raises:
        ValueError: the teacher knows its items by more than E_i.
    """
    if not isinstance(teacher, SequenceTeacher) or len(teacher.item_tables()) != 1:
        raise ValueError(
            f"the teacher {type(teacher).__name__} cannot be given other items: it knows them by more than E_i; train "
            "the other workspace with sasrec, gru4rec or nextitnet"
        )
    moved = copy.deepcopy(teacher)
    moved.take_items(torch.zeros(len(items_ND), dtype=torch.int64), items_ND)
    return moved
