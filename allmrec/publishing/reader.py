"""Reading what the nightly run published: whole runs only, verified.

Any Parquet reader can do without this module; it follows `latest.json` or a date's `_SUCCESS` and checks every file
against its sha256.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import from_parquet, sha256
from allmrec.core.commit_log import Entry, entries_after, find_json, newest_entry
from allmrec.core.hashing import shard_of
from allmrec.core.storage import S3Config, Storage, open_storage
from allmrec.publishing.log import LATEST, manifest_key, published_dates
from allmrec.publishing.vectors import named_files, schema_of
from schemas import read_as
from schemas.recommendations import SCHEMA

T = TypeVar("T")
_PARALLEL = 8  # files at a time


def read_recommendations(uri: str, run_date: date | str | None = None, s3: S3Config | None = None) -> pa.Table:
    """The current run's recommendations, or those of a date: the `recommendations` table, one row a user.

    Args:
        uri: where recommendations are published (`nightly.output`).
        s3: how to reach the store; by default as the environment says (AWS_ENDPOINT_URL and so on).

    Raises:
        ValueError: nothing is published there, or a file is missing or damaged; names it.
    """
    storage = open_storage(uri, s3)
    return _whole(storage, run_date, lambda manifest: _concat(read_rows, storage, manifest["files"]))


def read_vectors(uri: str, of: str, run_date: date | str | None = None, s3: S3Config | None = None) -> pa.Table:
    """LLM-SRec's vectors, as the current run or a date's published them (`nightly.publish_vectors`).

    Args:
        uri, run_date, s3: as for `read_recommendations`.
        of: "users" or "items"; `schemas.user_vectors` and `schemas.item_vectors` have the columns.

    Raises:
        ValueError: as `read_recommendations`, or the run has published none.
    """
    storage = open_storage(uri, s3)

    def read_file(storage: Storage, file: dict[str, Any]) -> pa.Table:
        table = read_published(storage, file)
        return read_as(table, schema_of(of, table))

    def read(manifest: Entry) -> pa.Table:
        if "vectors" not in manifest:
            raise ValueError(f"{uri}: the run of {manifest['run_date']} has no vectors; set nightly.publish_vectors")
        return _concat(read_file, storage, manifest["vectors"][of])

    return _whole(storage, run_date, read)


def read_user(storage: Storage, user_id: str, run_date: date | str | None = None) -> dict[str, Any]:
    """A user's row of the current run, or of a date's. Reads the one file that holds the user's shard.

    Raises:
        ValueError: as `read_recommendations`, or the run has no such user.
    """

    def read(manifest: Entry) -> dict[str, Any]:
        shard = int(shard_of(pa.array([user_id]), len(manifest["files"]))[0])
        table = read_rows(storage, manifest["files"][shard])
        rows = table.filter(pc.equal(table.column("user_id"), user_id)).to_pylist()
        if not rows:
            raise ValueError(
                f"{storage.uri}: the run of {manifest['run_date']} has no user {user_id!r}; users without a history "
                "are not in it"
            )
        return rows[0]

    return _whole(storage, run_date, read)


def published_runs(storage: Storage) -> list[dict[str, Any]]:
    """Every date that has a run, newest first: run_date, run_id, bundle, rows, megabytes, published_at, current."""
    current, published_at = newest_entry(storage), {}
    for entry in entries_after(storage, 0):
        published_at[entry["run_id"]] = entry["published_at"]
    runs = []
    for run_date in reversed(published_dates(storage)):
        manifest = find_json(storage, manifest_key(run_date))
        if manifest is not None:  # else it was expired since
            runs.append(
                {
                    **{name: manifest[name] for name in ("run_date", "run_id")},
                    "bundle": manifest["identity"].get("bundle"),
                    "rows": manifest["rows"],
                    "megabytes": round(sum(file["size"] for file in named_files(manifest)) / 1e6, 1),
                    "published_at": published_at.get(manifest["run_id"]),
                    "current": current is not None and current["run_id"] == manifest["run_id"],
                }
            )
    return runs


def verify_run(storage: Storage, run_date: date | str | None = None) -> dict[str, Any]:
    """Read every file of the current run, or of a date's, and compare it with its manifest.

    Returns:
        what was read: run_date, run_id, files, rows.

    Raises:
        ValueError: names every file that is missing or damaged.
    """

    def wrong(file: dict[str, Any]) -> str | None:
        try:
            rows = read_published(storage, file).num_rows
        except ValueError as error:
            return str(error)
        return None if rows == file["rows"] else f"{storage.name(file['key'])} has {rows} rows and not {file['rows']}"

    def verify(manifest: Entry) -> dict[str, Any]:
        files = named_files(manifest)
        with ThreadPoolExecutor(_PARALLEL) as pool:
            found = [message for message in pool.map(wrong, files) if message]
        if found:
            raise ValueError("; ".join(found))
        stats = {name: manifest[name] for name in ("run_date", "run_id", "rows")}
        return {**stats, "files": len(files)}

    return _whole(storage, run_date, verify)


def _concat(
    read: Callable[[Storage, dict[str, Any]], pa.Table], storage: Storage, files: list[dict[str, Any]]
) -> pa.Table:
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return pa.concat_tables(pool.map(lambda file: read(storage, file), files))


def read_rows(storage: Storage, file: dict[str, Any]) -> pa.Table:
    """One file of recommendations, verified, in this release's schema.

    Raises:
        ValueError: as `read_published`, or the file lacks a column that cannot be null.
    """
    return read_as(read_published(storage, file), SCHEMA)


def read_published(storage: Storage, file: dict[str, Any]) -> pa.Table:
    """One file of a manifest as it was written, verified. Raises ValueError naming a missing or damaged one."""
    try:
        data = storage.read(file["key"])
    except FileNotFoundError:
        raise ValueError(f"{storage.name(file['key'])} is missing: it was deleted after it was published") from None
    if sha256(data) != file["sha256"]:
        raise ValueError(f"{storage.name(file['key'])} is damaged: its sha256 is not the manifest's")
    return from_parquet(data)


def _whole(storage: Storage, run_date: date | str | None, read: Callable[[Entry], T]) -> T:
    """`read(manifest)`, and once more whenever the run's files were replaced meanwhile (`suppress` does)."""
    while True:
        manifest = run_manifest(storage, run_date)
        try:
            return read(manifest)
        except ValueError:
            if named_files(run_manifest(storage, run_date)) == named_files(manifest):
                raise


def run_manifest(storage: Storage, run_date: date | str | None = None) -> Entry:
    """What the current run, or a date's, says of its files. Raises ValueError where nothing is published."""
    manifest = find_json(storage, LATEST if run_date is None else manifest_key(run_date))
    if manifest is None:
        raise ValueError(f"{storage.uri}: nothing is published {f'for {run_date}' if run_date else 'there yet'}")
    return manifest
