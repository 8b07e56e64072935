"""Tables of Delta Lake, by `deltalake`, which replays a copy of the log: stores are reached as everywhere else here."""

import json
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from allmrec.core.hashing import fingerprint
from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.data.sources.files import InputFile
from allmrec.data.sources.snapshots import Layout, Snapshot, one_line

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(
    r"(\d{20})\.checkpoint(?:\.(?P<part>\d{10})\.(?P<parts>\d{10})|\.[0-9a-f-]{36})?\.(?:parquet|json)"
)


def open_snapshot(uri: str, version: int | None, s3: S3Config) -> Snapshot:
    log = open_storage(uri, s3).at("_delta_log")
    with tempfile.TemporaryDirectory() as folder:
        newest = _copy_log(log, Path(folder, "_delta_log"), uri, version)
        try:
            table = DeltaTable(folder, version=newest)
            if "deletionVectors" in (table.protocol().reader_features or ()) and _has_deletion_vectors(table):
                raise ValueError(
                    f"{uri}: deletion vectors mark rows of version {newest} as deleted, and they are not read; write "
                    "such files again (REORG TABLE … APPLY (PURGE)) or export the table"
                )
            fields = json.loads(table.schema().to_json())["fields"]
            parts, live = table.metadata().partition_columns, pa.table(table.get_add_actions(flatten=True))
        except (DeltaError, OSError) as error:
            raise ValueError(f"{uri}: cannot read version {newest} of the table: {one_line(error)}") from None
    inside = {
        entry["name"]: entry["metadata"].get("delta.columnMapping.physicalName", entry["name"])
        for entry in fields
        if entry["name"] not in parts
    }
    reading = fingerprint({name: physical for name, physical in inside.items() if name != physical})
    files, layouts = [], {}
    for entry in live.to_pylist():
        path = unquote(entry["path"])
        file = path if re.match(r"\w+:/", path) else f"{uri}/{path}"
        values = {part: _text(entry[f"partition.{part}"]) for part in parts}
        files.append(InputFile(file, entry["size_bytes"], entry["modification_time"] * 10**6, reading, str(newest)))
        layouts[file] = partial(_layout, inside, values)
    return Snapshot(tuple(files), (*inside, *parts), layouts, str(newest))


def _layout(inside: dict[str, str], values: dict[str, str | None], schema: pa.Schema) -> Layout:
    return Layout({name: physical for name, physical in inside.items() if physical in schema.names}, values)


def _copy_log(log: Storage, target: Path, uri: str, version: int | None) -> int:
    """Copy what replaying takes, from the last whole checkpoint on; which version it leads to."""
    names = [entry.key for entry in log.list()]
    commits = [int(match[1]) for name in names if (match := _COMMIT.fullmatch(name))]
    newest = max(commits, default=-1) if version is None else version
    if newest not in commits:
        raise ValueError(
            f"{uri} has no version {newest}; its log has {min(commits, default=0)} to {max(commits, default=0)}"
        )
    checkpoints = [match for name in names if (match := _CHECKPOINT.fullmatch(name)) and int(match[1]) <= newest]
    whole = [
        int(match[1])
        for match in checkpoints
        if match["parts"] is None or int(match["parts"]) == sum(other[1] == match[1] for other in checkpoints)
    ]
    first = max(whole, default=0)
    wanted = [match[0] for name in names if (match := _COMMIT.fullmatch(name) or _CHECKPOINT.fullmatch(name))]
    wanted = [name for name in wanted if first <= int(name[:20]) <= newest]
    for name in [*wanted, *(name for name in names if name.startswith("_sidecars/"))]:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(log.read(name))
    return newest


def _has_deletion_vectors(table: DeltaTable) -> bool:
    try:
        return bool(pa.table(table.deletion_vectors()).num_rows)
    except DeltaError:  # they are beside the table, of which only the log is here
        return True


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
