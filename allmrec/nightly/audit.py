"""What must hold for every shard of recommendations before anyone may read it.

Knows the rules; leaves to `allmrec.publishing.run` that nothing is published which has not passed them.
Vectorised over the users of a shard.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.nightly.filters import REASONS, ItemFilter
from allmrec.publishing.run import Run
from allmrec.publishing.vectors import IDS

_REFUSED = {
    "unavailable": "an item is not available",
    "category": "an item is in no allowed category",
    "blocked": "an item is blocked",
    "suppressed": "an item is suppressed",
}


def audit_finished_shard(
    run: Run,
    shard: int,
    expected_user_ids: pa.Array | pa.ChunkedArray,
    seen: Sequences,
    catalogue: Catalogue,
    top_k: int,
    filter: ItemFilter | None = None,
) -> str:
    """Audit a finished shard as it is in the store (`audit_shard` has the rules and raises ValueError).

    Returns:
        Its sha256, for `Run.publish`.
    """
    table, digest = run.read_shard(shard)
    name = f"run {run.run_id} of {run.run_date}, shard {shard}"
    _refuse_strange_rows(table, run, name)
    audit_shard(table, expected_user_ids, seen, catalogue, top_k, name, filter)
    return digest


def audit_finished_vectors(run: Run, shard: int, users: Sequences, items: np.ndarray, catalogue: Catalogue) -> None:
    """Refuse published vectors that break a rule: every user with a history and every item that belongs to the shard
    is in them once and no other, and all numbers are finite.

    Args:
        users: the shard's, with their histories.
        items: indices of the shard's share of those that may be recommended.

    Raises:
        ValueError: names the shard, and the rule or one user or item.
    """
    tables = run.read_shard_vectors(shard)
    expected = {
        "users": users.user_ids.filter(pa.array(users.lengths > 0)),
        "items": catalogue.item_ids.take(pa.array(items)),
    }
    for kind, ids in expected.items():
        name = f"run {run.run_id} of {run.run_date}, vectors of {kind} of shard {shard}"
        if kind not in tables:
            raise ValueError(f"{name} are missing")
        table = tables[kind]
        _refuse_strange_rows(table, run, name)
        _each_once(table.column(IDS[kind]), pa.chunked_array([ids]), name, kind)
        vectors = pc.list_flatten(table.column("vector"))
        if not pc.all(pc.is_finite(vectors), min_count=0).as_py():
            raise ValueError(f"{name}: a number is not finite")


def audit_shard(
    table: pa.Table,
    expected_user_ids: pa.Array | pa.ChunkedArray,
    seen: Sequences,
    catalogue: Catalogue,
    top_k: int,
    name: str = "shard",
    filter: ItemFilter | None = None,
) -> None:
    """Refuse a shard that breaks a rule.

    Every expected user is in it once; ranks are dense from 1; scores are finite; items are in the catalogue, pass
    the filter, are not seen by the user and not twice in a list; and a list is as long as it can be: `top_k`, or all
    the items that the user may be recommended where those are fewer.

    Args:
        table: of the `recommendations` schema, U rows.
        expected_user_ids: of the shard, each once.
        seen: histories; users without one may be missing.
        name: what messages call the shard.
        filter: what may be recommended; by default all that is available.

    Raises:
        ValueError: names the shard, the rule, how often it is broken, and one user.
    """
    users = table.column("user_id")
    _each_once(
        users,
        pa.chunked_array([expected_user_ids]) if isinstance(expected_user_ids, pa.Array) else expected_user_ids,
        name,
    )

    lists = (
        pa.concat_arrays(table.column("items").chunks)
        if table.num_rows
        else pa.array([], table.schema.field("items").type)
    )
    lengths = np.diff(lists.offsets.to_numpy()).astype(np.int64)
    entries = lists.flatten()
    rows = np.repeat(np.arange(len(lists)), lengths)

    def refuse(broken: np.ndarray, rule: str) -> None:
        """`broken` is bool per list entry."""
        if broken.any():
            first = np.flatnonzero(broken)[0]
            raise ValueError(
                f"{name}: {rule}: {broken.sum()} of {len(broken)} entries, "
                f"the first is {entries[int(first)].as_py()} of user {users[int(rows[first])].as_py()!r}"
            )

    firsts = np.cumsum(lengths) - lengths
    dense = np.arange(len(entries)) - np.repeat(firsts, lengths) + 1
    refuse(entries.field("rank").to_numpy(zero_copy_only=False) != dense, "ranks are not dense from 1")
    refuse(~np.isfinite(entries.field("score").to_numpy(zero_copy_only=False)), "a score is not finite")

    indices = pc.index_in(entries.field("item_id"), value_set=catalogue.item_ids.slice(1))
    refuse(indices.is_null().to_numpy(zero_copy_only=False), "an item is not in the catalogue")
    items = indices.to_numpy(zero_copy_only=False).astype(np.int64) + 1
    filter = filter or ItemFilter((~catalogue.available).astype(np.int8))
    for number, reason in enumerate(REASONS, 1):
        refuse(filter.verdict_I[items] == number, _REFUSED[reason])

    # A (row, item) pair as one integer.
    width = catalogue.num_items + 1
    pairs = rows * width + items
    order = np.argsort(pairs, kind="stable")
    repeated = np.zeros(len(pairs), dtype=bool)
    repeated[order[1:]] = pairs[order[1:]] == pairs[order[:-1]]
    refuse(repeated, "an item is twice in a list")

    seen_rows = pc.index_in(seen.user_ids, value_set=users).fill_null(-1).to_numpy(zero_copy_only=False)[seen.rows()]
    known = seen_rows >= 0
    seen_pairs = np.unique(seen_rows[known].astype(np.int64) * width + seen.items[known])
    refuse(np.isin(pairs, seen_pairs), "the user has seen an item")

    seen_and_allowed = filter.allowed_I[seen_pairs % width]
    possible = filter.allowed_I.sum() - np.bincount(seen_pairs[seen_and_allowed] // width, minlength=len(lists))
    wrong = lengths != np.minimum(possible, top_k)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{name}: lists are not as long as they can be: {wrong.sum()} of {len(lists)} users, "
            f"the first is {users[row].as_py()!r} with {lengths[row]} items instead of {min(possible[row], top_k)}"
        )


def _refuse_strange_rows(table: pa.Table, run: Run, name: str) -> None:
    for column, value in (("run_date", run.run_date), ("run_id", run.run_id)):
        if pc.any(pc.not_equal(table.column(column), value)).as_py():
            raise ValueError(f"{name}: {column} is not {value} everywhere")


def _each_once(ids: pa.ChunkedArray, expected: pa.ChunkedArray, name: str, of: str = "users") -> None:
    positions = pc.index_in(ids, value_set=expected)
    if positions.null_count:
        stranger = ids.filter(positions.is_null())[0].as_py()
        raise ValueError(f"{name}: {positions.null_count} {of} do not belong to it, the first is {stranger!r}")
    counts = np.bincount(positions.to_numpy(), minlength=len(expected))
    if (counts != 1).any():
        first = int(np.flatnonzero(counts != 1)[0])
        raise ValueError(
            f"{name}: {(counts == 0).sum()} {of} are missing and {(counts > 1).sum()} occur more than once, "
            f"the first is {expected[first].as_py()!r}"
        )
