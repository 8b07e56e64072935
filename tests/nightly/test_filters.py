"""Verdicts on items, and the audit that knows them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.data.sequences import Sequences
from allmrec.nightly.audit import audit_shard
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.filters import REASONS, build_filter
from allmrec.nightly.reuse import input_digests
from schemas.recommendations import SCHEMA
from tests.nightly.conftest import Shop

CATEGORIES = pa.chunked_array([[["Toys"], ["Toys", "Dolls"], None, [], ["Books"]], [["Toys", None]]])
AVAILABLE = [True, True, None, True, True, False]
ITEMS = pa.table({"item_id": [*"abcdef"], "available": AVAILABLE, "categories": CATEGORIES})


def test_of_several_reasons_the_first_counts() -> None:
    found = build_filter(ITEMS, ["Toys"], blocked=["b", "c", "nowhere"], suppressed=["b"])
    assert found.allowed_I.tolist() == [False, True, False, False, False, False, False]
    assert found.excluded() == {"unavailable": 1, "category": 3, "blocked": 1, "suppressed": 0}
    assert found.reasons(np.array([2, 2, 6])) == {"unavailable": 1, "category": 0, "blocked": 2, "suppressed": 0}
    assert found.digest != build_filter(ITEMS).digest
    with pytest.raises(ValueError, match=r"no item is left to recommend \(unavailable 1, category 5\)"):
        build_filter(ITEMS, ["Cars"])


def test_a_uri_is_short_for_a_table() -> None:
    config = NightlyConfig(users="s3://bucket/vip.csv.gz", blocked_items=["a.parquet", "b.parquet"])  # type: ignore[arg-type]
    assert config.users and config.users.format == "csv" and config.users.paths == ["s3://bucket/vip.csv.gz"]
    assert config.blocked_items.format == "parquet" and len(config.blocked_items.paths) == 2
    assert NightlyConfig(suppressed_items={"ids": ["a"]}).suppressed_items.ids == ["a"]  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", REASONS[1:])
def test_the_audit_refuses_what_the_filter_does(shop: Shop, reason: str) -> None:
    rows, seen = shop.rows(0, "run"), shop.seen(0)
    item = rows[0]["items"][0]["item_id"]
    ids, categories = shop.catalogue.item_ids[1:], pa.nulls(shop.num_items, pa.list_(pa.string()))
    if reason == "category":
        lists: dict = {"allowed_categories": ["x"]}
        categories = pa.array([[] if other == item else ["x"] for other in ids.to_pylist()], pa.list_(pa.string()))
    else:
        lists = {reason: [item]}
    table = pa.Table.from_pylist(rows, SCHEMA)
    items = {"item_id": ids, "available": shop.catalogue.available[1:], "categories": categories}
    filter = build_filter(pa.table(items), **lists)
    with pytest.raises(ValueError, match=f"in no allowed category|is {reason}"):
        audit_shard(table, seen.user_ids, seen, shop.catalogue, shop.top_k, filter=filter)


@given(
    st.lists(st.lists(st.integers(1, 5), max_size=4), min_size=2, max_size=5),
    st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=5, max_size=5),
)
def test_digests_tell_inputs_apart_and_nothing_else(histories: list[list[int]], candidates: list[list[int]]) -> None:
    """Equal inputs have equal digests, others differ; the other users of a shard do not matter."""
    ids, lists = pa.array(["u"] * len(histories)), pa.array(histories, pa.list_(pa.int32()))
    users = Sequences.from_table(pa.table({"user_id": ids, "item_index": lists}))
    shown = np.array(candidates[: len(histories)], dtype=np.int32)
    items = np.arange(6, dtype=np.uint64)
    digests = input_digests(users, shown, items, {"teacher": "v1"})
    inputs = [(tuple(history), tuple(row)) for history, row in zip(histories, candidates, strict=False)]
    assert len({*digests.tolist()}) == len({*inputs})
    some = np.array([1])
    assert input_digests(users.take(some), shown[some], items, {"teacher": "v1"}) == digests[1]
    assert (input_digests(users, shown, items, {"teacher": "v2"}) != digests).all()
    assert (input_digests(users, shown, items + np.uint64(9), {"teacher": "v1"}) != digests).all()
