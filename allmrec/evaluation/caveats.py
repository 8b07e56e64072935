"""When an evaluation means nothing, or less than it seems to: said beside its figures and not left to the reader.

Knows how many candidates the cases have. Dimensions: B cases, C candidates (the target first)
"""

from collections.abc import Iterable, Mapping

import numpy as np


def thin_cases(candidates_BC: np.ndarray) -> dict[str, int]:
    """Of some cases: how many there are, how many have no negative at all, and how many have not all of them.

    Args:
        candidates_BC: item indices; zeros are no candidates.
    """
    negatives_B = (candidates_BC[:, 1:] > 0).sum(axis=1)
    short_B = negatives_B < candidates_BC.shape[1] - 1
    return {"drawn": len(candidates_BC), "alone": int((negatives_B == 0).sum()), "short": int(short_B.sum())}


def caveats(shards: Iterable[Mapping[str, int]], num_negatives: int) -> list[str]:
    """Sentences, none where there is nothing to doubt.

    Args:
        shards: `thin_cases` of each.
    """
    rows = list(shards)
    drawn, alone, short = (sum(row[name] for row in rows) for name in ("drawn", "alone", "short"))
    found = []
    if alone:
        found.append(
            f"{alone:,} of {drawn:,} cases have no other item than the target to choose from: any system is right, "
            "so their figures mean nothing"
        )
    if short > alone:
        found.append(
            f"{short:,} of {drawn:,} cases have fewer than {num_negatives:,} negatives: the user has seen the rest "
            "of the catalogue. Their figures cannot be compared with other runs'; lower evaluation.num_negatives"
        )
    return found
