"""Candidate tries: which tokens the LLM must read, and at which of them it must decide, to rank candidates.

A candidate's path is its title's tokens and the end token. Its probability is the product, over the branching nodes
on the path, of the softmax restricted to that node's children: what constrained decoding of the title would give.
Only branching nodes need logits, and only tokens that lead to one need to be read. Knows no LLM.
"""

from dataclasses import dataclass

import numpy as np

from allmrec.llm.prompt import Titles

ROOT = -1  # the parent of a node or an edge that hangs on the prompt's last token


@dataclass(frozen=True)
class Tries:
    """The tries of B prompts with C candidates each, as flat arrays.

    Nodes are the inner tokens that the LLM reads after the prompt, ordered by depth; an edge is one choice at a
    branching node; `path_*` lists the edges on every candidate's path.
    """

    node_row: np.ndarray  # int64 (M,) prompt
    node_token: np.ndarray  # int32 (M,)
    node_depth: np.ndarray  # int64 (M,), 1 for the first token after the prompt
    node_parent: np.ndarray  # int64 (M,) a node, or ROOT
    edge_row: np.ndarray  # int64 (E,) prompt
    edge_parent: np.ndarray  # int64 (E,) the branching node, or ROOT
    edge_token: np.ndarray  # int32 (E,)
    path_candidate: np.ndarray  # int64 (P,) into the flattened (B, C)
    path_edge: np.ndarray  # int64 (P,)
    title_multiplicity: np.ndarray  # int32 (B, C): candidates with this very title; 0 where there is no candidate


def build_tries(titles: Titles, candidates: np.ndarray, end: int) -> Tries:
    """Tries over int32 (B, C) candidates; zeros are no candidates. `end` closes every title."""
    rows, columns = np.nonzero(candidates)
    flat = rows * candidates.shape[1] + columns
    items = candidates[rows, columns].astype(np.int64)
    leaves, leaf, sharing = np.unique(
        rows * np.int64(len(titles.group)) + titles.group[items], return_inverse=True, return_counts=True
    )
    title_multiplicity = np.zeros(candidates.shape, dtype=np.int32)
    title_multiplicity[rows, columns] = sharing[leaf]

    lengths, starts = titles.lengths[items], titles.offsets[items]
    prefix = rows.astype(np.int64)  # id of each candidate's prefix at this depth; the root's is its prompt
    num_prefixes = candidates.shape[0]
    row_of, token_of = np.arange(num_prefixes), np.zeros(num_prefixes, dtype=np.int64)
    parent_of = np.full(num_prefixes, -1)
    alive = np.ones(len(items), dtype=bool)  # whose prefix may still branch below
    levels: list[dict[str, np.ndarray]] = []
    for depth in range(int(lengths.max(initial=0)) + 1):
        inside = np.minimum(starts + depth, len(titles.tokens) - 1)
        token = np.where(depth < lengths, titles.tokens[inside], end).astype(np.int64)
        who = np.flatnonzero(alive)
        key, child = np.unique(prefix[who] * 2**32 + token[who], return_inverse=True)
        child_parent, child_token = key >> 32, key & (2**32 - 1)
        branching = np.bincount(child_parent, minlength=num_prefixes) > 1
        chosen = branching[prefix[who]]
        levels.append(
            {
                "row": row_of,
                "token": token_of,
                "parent": parent_of,
                "branching": branching,
                "edge_parent": child_parent[branching[child_parent]],
                "edge_token": child_token[branching[child_parent]],
                "path_candidate": flat[who[chosen]],
                "path_edge": (np.cumsum(branching[child_parent]) - 1)[child[chosen]],
            }
        )
        row_of, token_of, parent_of = row_of[child_parent], child_token, child_parent
        num_prefixes = len(key)
        prefix[who] = child
        # A prefix that only one title still has cannot branch.
        titles_below = np.bincount(np.unique(child * np.int64(len(leaves)) + leaf[who]) // max(len(leaves), 1))
        alive[who] = titles_below[child] > 1
        if not alive.any():
            break

    # From the deepest level up: a node is read if it branches or leads to one that does.
    needed: list[np.ndarray] = [level["branching"] for level in levels]
    for depth in range(len(levels) - 1, 0, -1):
        needed[depth - 1] = needed[depth - 1].copy()
        needed[depth - 1][levels[depth]["parent"][needed[depth]]] = True
    number: list[np.ndarray] = []  # node number of each needed prefix
    count = 0
    for depth, keep in enumerate(needed):
        if depth == 0:
            number.append(np.full(len(keep), ROOT))
            continue
        number.append(np.where(keep, np.cumsum(keep) - 1 + count, ROOT))
        count += int(keep.sum())

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    inner = [(depth, level, needed[depth]) for depth, level in enumerate(levels) if depth > 0]
    edge_base = np.cumsum([0, *[len(level["edge_parent"]) for level in levels]])
    return Tries(
        node_row=joined([level["row"][keep] for _, level, keep in inner]),
        node_token=joined([level["token"][keep] for _, level, keep in inner]).astype(np.int32),
        node_depth=joined([np.full(int(keep.sum()), depth) for depth, _, keep in inner]),
        node_parent=joined([number[depth - 1][level["parent"][keep]] for depth, level, keep in inner]),
        edge_row=joined([level["row"][level["edge_parent"]] for level in levels]),
        edge_parent=joined([number[depth][level["edge_parent"]] for depth, level in enumerate(levels)]),
        edge_token=joined([level["edge_token"] for level in levels]).astype(np.int32),
        path_candidate=joined([level["path_candidate"] for level in levels]),
        path_edge=joined([level["path_edge"] + edge_base[depth] for depth, level in enumerate(levels)]),
        title_multiplicity=title_multiplicity,
    )
