"""The vectors that a run may publish beside its recommendations: their tables, and where their files are.

    run_date=D/_vectors/users/part-00003.parquet
    run_date=D/_vectors/items/part-00003.parquet

Engines that look for a date's recommendations ignore names that begin with _; the manifest names these files under
`vectors`. A shard has its users, and a share of the items.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from schemas import item_vectors, user_vectors

SCHEMAS: dict[str, Callable[[int], pa.Schema]] = {"users": user_vectors.schema, "items": item_vectors.schema}
IDS = {"users": "user_id", "items": "item_id"}


def schema_of(kind: str, table: pa.Table) -> pa.Schema:
    """The table's schema, by the dimensions of its column `vector`."""
    return SCHEMAS[kind](table.schema.field("vector").type.list_size)


def folder(run_date: object, kind: str = "") -> str:
    return f"run_date={run_date}/_vectors/{kind}"


def named_files(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All files that a manifest or an entry of the log names: of the recommendations, then of the vectors."""
    return [*manifest["files"], *(file for files in manifest.get("vectors", {}).values() for file in files)]
