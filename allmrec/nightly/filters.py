"""What may be recommended at all: one verdict an item, made from the items table and the config's lists.

Retrieval, candidates of other systems, popular items and the audit all ask the same verdicts, so that none can let
through what another refuses. What a user has seen is the users' matter (`allmrec.nightly.candidates`).

Dimensions: I = n + 1 items (0 is padding)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import sha256

# Why an item is not recommended; of several the first counts.
REASONS = ("unavailable", "category", "blocked", "suppressed")


@dataclass(frozen=True)
class ItemFilter:
    """int8 (I,): 0 for an item that may be recommended, else 1 + the place of its reason in REASONS."""

    verdict_I: np.ndarray

    @property
    def allowed_I(self) -> np.ndarray:
        """bool (I,); entry 0 is False."""
        return self.verdict_I == 0

    @property
    def digest(self) -> str:
        return sha256(self.verdict_I.tobytes())

    def excluded(self) -> dict[str, int]:
        """Items left out, by reason."""
        counts = np.bincount(self.verdict_I[1:], minlength=1 + len(REASONS))[1:]
        return dict(zip(REASONS, counts.tolist(), strict=True))

    def reasons(self, items: np.ndarray) -> dict[str, int]:
        """How many of the given item indices are refused, by reason."""
        counts = np.bincount(self.verdict_I[items], minlength=1 + len(REASONS))[1:]
        return dict(zip(REASONS, counts.tolist(), strict=True))


def build_filter(
    items: pa.Table,
    allowed_categories: Sequence[str] | None = None,
    blocked: Sequence[str] = (),
    suppressed: Sequence[str] = (),
) -> ItemFilter:
    """The verdicts.

    Args:
        items: item_id, available and categories of the items 1 ... n; null is available, and in no category.
        allowed_categories: an item needs one of them; None lets in any.
        blocked, suppressed: item ids; unknown ones say nothing.

    Raises:
        ValueError: nothing is left to recommend.
    """
    refused = {
        "unavailable": pc.invert(pc.fill_null(items.column("available"), True)).to_numpy(),
        "category": _outside(items.column("categories"), allowed_categories),
        "blocked": _among(items.column("item_id"), blocked),
        "suppressed": _among(items.column("item_id"), suppressed),
    }
    verdict_I = np.zeros(len(items) + 1, dtype=np.int8)
    verdict_I[0] = 1  # padding is not available
    for number, reason in reversed([*enumerate(REASONS, 1)]):
        verdict_I[1:][refused[reason]] = number
    found = ItemFilter(verdict_I)
    if not found.allowed_I.any():
        counts = ", ".join(f"{reason} {count:,}" for reason, count in found.excluded().items() if count)
        raise ValueError(
            f"no item is left to recommend ({counts}); check nightly.allowed_categories and the lists of items"
        )
    return found


def _outside(categories: pa.ChunkedArray, allowed: Sequence[str] | None) -> np.ndarray:
    refused = np.full(len(categories), allowed is not None)
    if allowed is not None:
        inside = pc.is_in(pc.list_flatten(categories), pa.array(allowed, pa.string())).to_numpy()
        refused[pc.list_parent_indices(categories).to_numpy()[inside]] = False
    return refused


def _among(item_ids: pa.ChunkedArray, listed: Sequence[str]) -> np.ndarray:
    return pc.is_in(item_ids, pa.array(listed, pa.string())).to_numpy()
