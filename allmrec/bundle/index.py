"""The part `index` of a bundle: the inverted lists of the teacher's items, found once and not by every worker.

Optional: it is in bundles of more items than `nightly.approximate_above`. It follows from the teacher and the items, so
a bundle of others gets its own; an index of a bundle without it is made by each worker.
"""

from typing import Any

import torch

from allmrec.cf.approximate import ItemLists
from allmrec.cf.teacher import Teacher
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors

INDEX = 1  # its algorithm: raised when the same teacher and items give other lists
LISTS = "lists.safetensors"


def index_identity(num_items: int, above: int | None) -> dict[str, Any]:
    """What a bundle's content says of its index: nothing, if it is to have none.

    Args:
        above: `nightly.approximate_above`.
    """
    return {"index": INDEX} if above is not None and num_items > above else {}


def item_lists(teacher: Teacher, seed: int) -> dict[str, torch.Tensor]:
    """What LISTS holds. Raises ValueError as `ItemLists.of`."""
    everything_I = torch.arange(len(teacher.item_embeddings)) > 0
    lists = ItemLists.of(teacher, everything_I, seed)
    return {"centre": torch.from_numpy(lists.centre_LE), "list": torch.from_numpy(lists.list_I)}


def load_item_lists(index: Storage) -> ItemLists:
    """The lists of a bundle's part."""
    tensors = read_tensors(index, LISTS)
    return ItemLists(tensors["centre"].numpy(), tensors["list"].numpy())
