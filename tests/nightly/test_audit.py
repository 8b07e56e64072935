"""Each rule of the audit, by a fault put into a table that passes."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from allmrec.nightly.audit import audit_shard
from schemas.recommendations import SCHEMA
from tests.nightly.conftest import Shop

Rows = list[dict[str, Any]]


def audit(shop: Shop, rows: Rows, top_k: int | None = None) -> None:
    seen = shop.seen(0)
    table = pa.Table.from_pylist(rows, SCHEMA)
    audit_shard(table, seen.user_ids, seen, shop.catalogue, top_k or shop.top_k, "shard 0")


def test_a_right_shard_passes_whatever_the_order_of_its_users(shop: Shop) -> None:
    rows = shop.rows(0, "run")
    audit(shop, rows)
    audit(shop, rows[::-1])
    assert min(len(row["items"]) for row in rows) < shop.top_k, "a user has fewer than top_k items left"


def test_an_empty_shard_of_no_users_passes(shop: Shop) -> None:
    seen = shop.seen(0)
    audit_shard(SCHEMA.empty_table(), pa.array([], pa.string()), seen, shop.catalogue, shop.top_k)


def _seen_item(shop: Shop, rows: Rows) -> None:
    row = next(row for row in rows if len(row["items"]) == shop.top_k and _history(shop, row))
    row["items"][0]["item_id"] = f"item {_history(shop, row)[0]}"


def _history(shop: Shop, row: dict[str, Any]) -> list[int]:
    return next(user["item_index"] for user in shop.tables[0].to_pylist() if user["user_id"] == row["user_id"])


FAULTS: dict[str, Callable[[Shop, Rows], Any]] = {
    "1 users are missing and 0 occur more than once": lambda shop, rows: rows.pop(),
    "0 users are missing and 1 occur more than once": lambda shop, rows: rows.append(rows[0]),
    "1 users do not belong to it, the first is 'stranger'": lambda shop, rows: rows[0].update(user_id="stranger"),
    "ranks are not dense from 1: 1 of .* of user 'u": lambda shop, rows: rows[2]["items"][-1].update(rank=9),
    "ranks are not dense from 1: [0-9]+ of": lambda shop, rows: rows[1]["items"].reverse(),
    "a score is not finite: 1 of": lambda shop, rows: rows[3]["items"][0].update(score=float("nan")),
    "a score is not finite: 1 of .*inf": lambda shop, rows: rows[3]["items"][1].update(score=float("-inf")),
    "an item is not in the catalogue: .*'item 99'": lambda shop, rows: rows[0]["items"][0].update(item_id="item 99"),
    "an item is not in the catalogue: .*''": lambda shop, rows: rows[0]["items"][0].update(item_id=""),
    "an item is not available: .*'item 12'": lambda shop, rows: rows[0]["items"][0].update(item_id="item 12"),
    "an item is twice in a list: 1 of": lambda shop, rows: rows[0]["items"][1].update(
        item_id=rows[0]["items"][0]["item_id"]
    ),
    "the user has seen an item: 1 of": _seen_item,
    "lists are not as long as they can be: 1 of": lambda shop, rows: rows[0]["items"].pop(),
    "lists are not as long as they can be: 1 of .* with 0 items": lambda shop, rows: rows[0].update(items=[]),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_broken_rule_is_named(shop: Shop, message: str) -> None:
    rows = shop.rows(0, "run")
    FAULTS[message](shop, rows)
    with pytest.raises(ValueError, match=f"shard 0: {message}"):
        audit(shop, rows)


def test_a_list_longer_than_asked_for_is_refused(shop: Shop) -> None:
    with pytest.raises(ValueError, match="with 5 items instead of 3"):
        audit(shop, shop.rows(0, "run"), top_k=3)
