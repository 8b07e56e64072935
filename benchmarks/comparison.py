"""Reads evaluated workspaces: figures, differences paired by user, and a paper's numbers beside them."""

import json
from collections.abc import Mapping

from allmrec.core.workspace import Workspace
from benchmarks.report import Row

Key = tuple[str, str, str]  # protocol, subset, metric


def rows_by_key(workspace: Workspace) -> Mapping[tuple[str, ...], Row]:
    """Of `metrics.json`, by system, protocol, subset and metric; empty for a workspace that has not been evaluated."""
    if not workspace.storage.exists("metrics.json"):
        return {}
    rows = json.loads(workspace.storage.read("metrics.json"))
    return {tuple(row[key] for key in ("system", "protocol", "subset", "metric")): row for row in rows}


def systems_of(workspace: Workspace) -> list[str]:
    return list(dict.fromkeys(system for system, *_ in rows_by_key(workspace)))


def difference(rows: list[Row], key: Key, name: str) -> Row:
    """From rows of `compare`, with the half width of its 95 % interval; empty if there are no pairs."""
    for row in rows:
        if (row["protocol"], row["subset"], row["metric"]) == key and row["high"] is not None:
            return {name: row["difference"], f"± 95 %, {name}": row["high"] - row["difference"]}
    return {}


def verdict(difference: float | None, half: float | None) -> str:
    """Whether a difference is above zero; "open" if its interval contains zero, or if it has no interval."""
    if difference is None or half is None or abs(difference) <= half:
        return "open"
    return "holds" if difference > 0 else "reversed"


def beside(name: str, numbers: tuple[float | None, ...] | None, data_sets: tuple[str, ...]) -> Row:
    """A paper's numbers as columns; empty for a row that the paper does not have."""
    found = zip(data_sets, numbers or (), strict=False)
    return {f"paper's {name}, {data}": number for data, number in found if number is not None}
