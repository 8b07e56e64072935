"""Tries against dictionaries: which tokens are read, where it is decided, and which choices a candidate is made of."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from allmrec.data.sequences import offsets_of
from allmrec.llm.prompt import Titles
from allmrec.llm.trie import ROOT, Tries, build_tries

END = 0
title = st.lists(st.integers(1, 3), max_size=5).map(tuple)


def titles_of(lists: list[tuple[int, ...]]) -> Titles:
    """Entry 0 is padding."""
    padded = [(), *lists]
    seen: dict[tuple[int, ...], int] = {}
    group = [-1] + [seen.setdefault(one, len(seen)) for one in lists]
    flat = np.array([token for one in padded for token in one], dtype=np.int32)
    return Titles(flat, offsets_of(np.array([len(one) for one in padded])), np.array(group, dtype=np.int32) + 1)


@dataclass
class Node:
    """A dictionary of dictionaries, with names."""

    children: dict[int, "Node"] = field(default_factory=dict)

    def insert(self, path: tuple[int, ...]) -> None:
        if path:
            self.children.setdefault(path[0], Node()).insert(path[1:])

    def branching(self, prefix: tuple[int, ...] = ()) -> dict[tuple[int, ...], set[int]]:
        """Prefixes at which there is a choice, and the choices."""
        found = {prefix: set(self.children)} if len(self.children) > 1 else {}
        for token, child in self.children.items():
            found |= child.branching((*prefix, token))
        return found


def prefixes(tries: Tries) -> list[tuple[int, ...]]:
    """The tokens from the prompt to each node."""
    out: list[tuple[int, ...]] = []
    for node, (parent, token) in enumerate(zip(tries.node_parent, tries.node_token, strict=True)):
        assert parent < node, "parents come first"
        out.append((*(out[parent] if parent != ROOT else ()), int(token)))
    return out


@given(
    catalogue=st.lists(title, min_size=1, max_size=8).filter(any),
    rows=st.lists(st.lists(st.integers(0, 7), min_size=5, max_size=5), min_size=1, max_size=4),
)
@example(catalogue=[(1,), (1, 2), (1, 2, 3)], rows=[[1, 2, 3, 0, 0]])  # prefixes of one another
@example(catalogue=[(1, 2), (1, 2), (1, 3)], rows=[[1, 2, 3, 1, 0]])  # identical titles
@example(catalogue=[(1, 2), (1, 2)], rows=[[1, 2, 0, 0, 0]])  # nothing to decide
@example(catalogue=[(1,)], rows=[[0, 0, 0, 0, 0]])  # no candidates
@example(catalogue=[(), (1,)], rows=[[1, 2, 0, 0, 0]])  # an empty title
def test_equals_a_dictionary_of_dictionaries(catalogue, rows):
    candidates = np.minimum(np.array(rows, dtype=np.int32), len(catalogue))
    tries = build_tries(titles_of(catalogue), candidates, END)
    node_prefix = prefixes(tries)
    assert (np.diff(tries.node_depth) >= 0).all()
    assert [len(prefix) for prefix in node_prefix] == tries.node_depth.tolist()
    edges = [
        (int(row), node_prefix[parent] if parent != ROOT else (), int(token))
        for row, parent, token in zip(tries.edge_row, tries.edge_parent, tries.edge_token, strict=True)
    ]
    assert all(
        tries.node_row[parent] == row
        for row, parent in zip(tries.edge_row, tries.edge_parent, strict=True)
        if parent != ROOT
    )

    expected_edges, expected_nodes = set(), set()
    for row, chosen in enumerate(candidates):
        paths = {column: (*catalogue[item - 1], END) for column, item in enumerate(chosen) if item}
        root = Node()
        for path in paths.values():
            root.insert(path)
        branching = root.branching()
        expected_edges |= {(row, prefix, token) for prefix, tokens in branching.items() for token in tokens}
        # What must be read: every branching prefix and what leads to it, and nothing else.
        expected_nodes |= {(row, prefix[:depth]) for prefix in branching for depth in range(1, len(prefix) + 1)}
        for column in range(candidates.shape[1]):
            flat = row * candidates.shape[1] + column
            found = {edges[edge] for edge in tries.path_edge[tries.path_candidate == flat]}
            path = paths.get(column, ())
            assert found == {(row, path[:d], path[d]) for d in range(len(path)) if path[:d] in branching}
            assert tries.title_multiplicity[row, column] == sum(other == path for other in paths.values() if path)
    assert len(set(edges)) == len(edges) and set(edges) == expected_edges
    nodes = list(zip(tries.node_row.tolist(), node_prefix, strict=True))
    assert len(set(nodes)) == len(nodes) and set(nodes) == expected_nodes


def test_twenty_candidates_need_few_tokens():
    """Titles that part at their first token need no inner token at all; a shared one costs one token."""
    catalogue = [(token, 50, 51) for token in range(1, 20)] + [(1, 60)]
    tries = build_tries(titles_of(catalogue), np.arange(1, 21, dtype=np.int32)[None, :], END)
    assert tries.node_token.tolist() == [1] and tries.node_depth.tolist() == [1]
    assert len(tries.edge_token) == 19 + 2
