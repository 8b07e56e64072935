"""An approximate index of the catalogue: top-N retrieval for catalogues too large to score whole for every user.

Faiss's inverted lists (IVF), over the Euclidean form of inner products (Bachrach et al. 2014, section 3): an item gets
one dimension more, which makes all norms equal, so that the nearest item is the one with the highest dot product. Knows
teachers whose score is that product; faiss is an extra and imported only here.

Dimensions: U users, B of a block, D = teacher.dim, I = n + 1 items (0 is padding), N items wanted, M >= N looked at
"""

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


class ApproximateIndex:
    """The available items that the teacher knows (E_i is not zeros). Depends on them and the seed alone."""

    def __init__(self, teacher: Teacher, available_I: torch.Tensor, seed: int):
        """
        Args:
            available_I: bool (n + 1,); entry 0 is False.

        Raises:
            ValueError: the teacher's scores are no dot products, or faiss is not installed.
        """
        faiss = load_faiss()
        self.teacher, self.available_I = teacher, available_I
        self.items = (available_I & teacher.item_embeddings.any(1)).nonzero()[:, 0]
        if not teacher.scores_by_product():
            raise ValueError(
                f"{type(teacher).__name__}'s scores are not dot products of its embeddings, so no index can find them; "
                "leave nightly.approximate_above out"
            )
        items_ND = teacher.item_embeddings[self.items].float().cpu().numpy()
        square_N = (items_ND**2).sum(axis=1)
        missing_N = np.sqrt(square_N.max(initial=0) - square_N)
        num_lists = max(1, min(int(len(items_ND) ** 0.5), len(items_ND) // _LEAST))
        dim = items_ND.shape[1] + 1
        self.quantizer = faiss.IndexFlatL2(dim)  # the index holds no reference of its own
        self.index = faiss.IndexIVFFlat(self.quantizer, dim, num_lists)
        self.index.nprobe = max(_PROBES, num_lists // _SHARE)
        self.index.cp.seed = seed % 2**31
        points_NE = np.concatenate([items_ND, missing_N[:, None]], axis=1)
        self.index.train(points_NE)
        self.index.add(points_NE)

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
