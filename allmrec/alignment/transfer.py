"""Models of one catalogue on another one, whose interactions nothing has seen (paper section 5.2.5).

The paper says that q_i stands in for e_i there, and not where x^u comes from. Here the alignment's decoder gives every
new item an embedding in the teacher's space, E_i = f_I^dec(q_i), and the teacher reads histories of those as it reads
its own. Nothing is trained.

Dimensions: N = n + 1 items of the new catalogue (0 is padding), D = teacher.dim, S of texts, J of the joint embeddings
"""

import torch

from allmrec.alignment.network import AlignmentNetwork
from allmrec.cf.teacher import SequenceTeacher, Teacher, TeacherConfig, build_teacher


@torch.no_grad()
def decoded_items(network: AlignmentNetwork, texts_NS: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E_ND, q_NJ) of items that have texts alone; row 0 is zeros."""
    q_NJ = network.encode_texts(texts_NS)
    items_ND = network.original_items(network.item_decoder(q_NJ))
    q_NJ[0], items_ND[0] = 0, 0
    return items_ND, q_NJ


def with_items(teacher: Teacher, config: TeacherConfig, items_ND: torch.Tensor) -> SequenceTeacher:
    """The same teacher for other items.

    Raises:
        ValueError: the teacher knows its items by more than E_i.
    """
    if not isinstance(teacher, SequenceTeacher) or len(teacher.item_tables()) != 1:
        raise ValueError(
            f"a teacher of model {config.model!r} cannot be given other items: it knows them by more than E_i; train "
            "the other run with sasrec, gru4rec or nextitnet"
        )
    moved = build_teacher(config, len(items_ND) - 1)
    moved.load_state_dict(teacher.state_dict() | {"items.weight": items_ND})
    return moved.eval().requires_grad_(False)
