"""An approximate index of the catalogue: top-N retrieval for catalogues too large to score whole for every user.

Faiss's inverted lists (IVF), over the Euclidean form of inner products (Bachrach et al. 2014, section 3): an item gets
one dimension more, which makes all norms equal, so that the nearest item is the one with the highest dot product. Knows
teachers whose score is that product; faiss is an extra and imported only here. Which items are near each other takes
long to find out and is the same whatever may be recommended: `ItemLists` can be kept.

Dimensions: U users, B of a block, D = teacher.dim, E = D + 1, I = n + 1 items (0 is padding), L lists, N items wanted,
M >= N looked at, P points
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from allmrec.cf.retrieval import Pairs, retrieve
from allmrec.cf.teacher import Teacher

_PROBES, _SHARE = 16, 32  # lists that a search visits: at least 16, or 1 in 32
_LEAST = 39  # items of a list; with fewer, k-means warns
_ROOM = 64  # looked at beyond 2 N, for items that the user has seen
_BLOCK = 4096  # users at once


def load_faiss() -> Any:
    """The module. Raises ValueError where it is not installed."""
    try:
        import faiss
    except ImportError:
        raise ValueError(
            "nightly.approximate_above needs faiss: pip install 'allmrec[faiss]', or leave the key out"
        ) from None
    return faiss


@dataclass(frozen=True)
class ItemLists:
    """Inverted lists: a centre each, and which of them an item is in."""

    centre_LE: np.ndarray  # float32
    list_I: np.ndarray  # int32; -1 of items that are in none

    @classmethod
    def of(cls, teacher: Teacher, available_I: torch.Tensor, seed: int) -> "ItemLists":
        """By k-means over the available items that the teacher knows (E_i is not zeros).

        Args:
            available_I: bool (n + 1,); entry 0 is False.

        Raises:
            ValueError: the teacher's scores are no dot products, or faiss is not installed.
        """
        faiss = load_faiss()
        if not teacher.scores_by_product():
            raise ValueError(
                f"{type(teacher).__name__}'s scores are not dot products of its embeddings, so no index can find them; "
                "leave nightly.approximate_above out"
            )
        listed_P = (available_I & teacher.item_embeddings.any(1)).nonzero()[:, 0]
        points_PE = _points(teacher, listed_P)
        num_lists = max(1, min(int(len(points_PE) ** 0.5), len(points_PE) // _LEAST))
        quantizer = faiss.IndexFlatL2(points_PE.shape[1])  # the index holds no reference of its own
        index = faiss.IndexIVFFlat(quantizer, points_PE.shape[1], num_lists)
        index.cp.seed = seed % 2**31
        index.train(points_PE)
        list_I = np.full(len(available_I), -1, dtype=np.int32)
        list_I[listed_P.cpu().numpy()] = quantizer.assign(points_PE, 1)[:, 0]
        return cls(quantizer.reconstruct_n(0, num_lists), list_I)


def _points(teacher: Teacher, listed_P: torch.Tensor) -> np.ndarray:
    """Items in the Euclidean form, float32 (P, E)."""
    items_PD = teacher.item_embeddings[listed_P].float().cpu().numpy()
    square_P = (items_PD**2).sum(axis=1)
    missing_P = np.sqrt(square_P.max(initial=0) - square_P)
    return np.concatenate([items_PD, missing_P[:, None]], axis=1)


class ApproximateIndex:
    """The available items that are in lists."""

    def __init__(self, teacher: Teacher, available_I: torch.Tensor, lists: ItemLists):
        """
        Args:
            available_I: bool (n + 1,); entry 0 is False.
            lists: of these items, and perhaps of others.
        """
        faiss = load_faiss()
        self.teacher, self.available_I = teacher, available_I
        listed_P = np.flatnonzero(lists.list_I >= 0)
        mine_P = available_I.cpu().numpy()[listed_P]
        points_NE = _points(teacher, torch.from_numpy(listed_P).to(available_I.device))[mine_P]
        self.items = torch.from_numpy(listed_P[mine_P]).to(available_I.device)
        num_lists, dim = lists.centre_LE.shape
        self.quantizer = faiss.IndexFlatL2(dim)  # the index holds no reference of its own
        self.quantizer.add(lists.centre_LE)
        self.index = faiss.IndexIVFFlat(self.quantizer, dim, num_lists)
        self.index.nprobe = max(_PROBES, num_lists // _SHARE)
        place_N, list_N = np.arange(len(points_NE)), lists.list_I[listed_P[mine_P]].astype(np.int64)
        self.index.add_core(len(points_NE), *map(faiss.swig_ptr, (points_NE, place_N, list_N)))

    @torch.inference_mode()
    def retrieve(self, x_UD: torch.Tensor, seen: Pairs, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `allmrec.cf.retrieval.retrieve`, but an item may be missed.

        A user with too few unseen items found gets the exact ones.
        """
        items = torch.zeros(len(x_UD), count, dtype=torch.int32, device=x_UD.device)
        scores = torch.full((len(x_UD), count), -torch.inf, device=x_UD.device)
        base = len(self.available_I)
        seen_S = (seen[0].long() * base + seen[1]).sort().values
        for first in range(0, len(x_UD), _BLOCK):
            x_BD = x_UD[first : first + _BLOCK]
            item_BM = self._neighbours(x_BD, 2 * count + _ROOM).sort(dim=1).values  # equal scores stay in index order
            row_B1 = torch.arange(first, first + len(x_BD), device=x_UD.device)[:, None]
            hidden_BM = (item_BM == 0) | _among(row_B1 * base + item_BM, seen_S)
            score_BM = self.teacher.scores(x_BD, item_BM).masked_fill(hidden_BM, -torch.inf)
            best_BN = score_BM.argsort(dim=1, descending=True, stable=True)[:, :count]
            found = slice(first, first + len(x_BD)), slice(best_BN.shape[1])
            items[found], scores[found] = item_BM.gather(1, best_BN).int(), score_BM.gather(1, best_BN)
        short_U = scores[:, -1] == -torch.inf
        row, item = seen[0].long(), seen[1]
        theirs = short_U[row]
        pairs = (short_U.cumsum(0) - 1)[row[theirs]], item[theirs]
        items[short_U], scores[short_U] = retrieve(self.teacher, x_UD[short_U], pairs, self.available_I, count)
        return items, scores

    def _neighbours(self, x_BD: torch.Tensor, count: int) -> torch.Tensor:
        """Items near each user, int64 (B, M); 0 where lists ran out."""
        x_BE = torch.nn.functional.pad(x_BD.float(), (0, 1)).cpu().numpy()
        _, place_BM = self.index.search(x_BE, min(count, len(self.items)))
        place_BM = torch.from_numpy(place_BM).to(x_BD.device)
        return torch.cat([self.items, self.items.new_zeros(1)])[place_BM]  # the last one is for faiss's -1, nothing


def _among(query: torch.Tensor, sorted_S: torch.Tensor) -> torch.Tensor:
    if not len(sorted_S):
        return torch.zeros_like(query, dtype=torch.bool)
    return sorted_S[torch.searchsorted(sorted_S, query).clamp(max=len(sorted_S) - 1)] == query
