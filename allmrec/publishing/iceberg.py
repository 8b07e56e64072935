"""The published dates as an Iceberg table: the runs' own files, added without a copy; each date is a partition.

The table follows the pointers (`_SUCCESS` of each date and the log), which stay the truth: whatever differs is changed
in one commit, so a commit that was missed is made up for by the next one. Needs the extra `iceberg`. PyIceberg finds
the catalog and its credentials in its own settings (`~/.pyiceberg.yaml`, PYICEBERG_CATALOG__<NAME>__URI).
"""

import logging
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import TYPE_CHECKING

from pydantic import Field

from allmrec.core.commit_log import find_json, newest_entry
from allmrec.core.settings import Section
from allmrec.core.storage import S3Config, Storage
from allmrec.publishing.log import manifest_key, published_dates
from schemas.recommendations import SCHEMA

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

log = logging.getLogger(__name__)

FOLDER = "_iceberg"  # beside the dates' folders; holds the table's metadata
CURRENT = "allmrec.current-run-date"  # a property of the table
# Metadata holds no bounds of user ids, which would outlive the removal of a user.
_PROPERTIES = {
    "format-version": "2",
    "write.metadata.metrics.default": "counts",
    "write.metadata.metrics.column.run_date": "full",
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
    "commit.manifest-merge.enabled": "true",
}
_PARALLEL = 8  # manifests at a time


class IcebergConfig(Section):
    """An Iceberg table that lists what is published."""

    catalog: str  # its name in PyIceberg's settings
    table: str = Field(pattern=r"^[^.]+(\.[^.]+)+$")  # namespace.name; made if it does not exist


def mirror(config: IcebergConfig | None, storage: Storage, s3: S3Config) -> None:
    """Make the table list exactly the files of the published dates; nothing is done where it does, or without one.

    Args:
        storage: where recommendations are published.

    Raises:
        ValueError: pyiceberg is not installed, or does not know the catalog.
    """
    if config is None:
        return
    table = _open(config, storage, s3)
    listed, published = _listed(table), _published(storage)
    newest = newest_entry(storage)
    current = {} if newest is None else {CURRENT: newest["run_date"]}
    changed = sorted(day for day in listed.keys() | published.keys() if listed[day] != published[day])
    if not changed and current.items() <= table.properties.items():
        return
    removed = [day for day in changed if listed[day]]
    with table.transaction() as transaction:
        if removed:
            quoted = ", ".join(f"'{day}'" for day in removed)
            transaction.delete(f"run_date in ({quoted})")
        if added := sorted(file for day in changed for file in published[day]):
            with transaction.update_schema() as columns:
                columns.union_by_name(SCHEMA)  # of a table that an earlier release made
            transaction.add_files(added, check_duplicate_files=False)
        transaction.set_properties(current)
    if removed:
        _expire_snapshots(table)


def check(config: IcebergConfig | None, s3: S3Config) -> None:
    """Raises ValueError as `mirror` would. A catalog that cannot be reached is no error: it may be reached later."""
    if config is None:
        return
    try:
        _catalog(config, s3)
    except ValueError:
        raise
    except Exception as error:  # each catalog's client has errors of its own
        log.warning("the Iceberg catalog %r cannot be reached: %s", config.catalog, error)


def _catalog(config: IcebergConfig, s3: S3Config) -> "Catalog":
    try:
        from pyiceberg.catalog import load_catalog
    except ImportError:
        raise ValueError("nightly.iceberg needs pyiceberg: pip install 'allmrec[iceberg]'") from None
    try:
        return load_catalog(config.catalog, **_store_properties(s3))
    except ValueError as error:
        raise ValueError(f"nightly.iceberg.catalog {config.catalog!r}: {error}") from None


def _open(config: IcebergConfig, storage: Storage, s3: S3Config) -> "Table":
    """The table, which is made if it does not exist."""
    catalog = _catalog(config, s3)
    if not catalog.table_exists(config.table):
        catalog.create_namespace_if_not_exists(config.table.rpartition(".")[0])
        made = catalog.create_table_transaction(config.table, SCHEMA, storage.name(FOLDER), properties=_PROPERTIES)
        with made as transaction, transaction.update_spec() as partitions:
            partitions.add_identity("run_date")
    return catalog.load_table(config.table)


def _store_properties(s3: S3Config) -> dict[str, str]:
    """The section `storage` for PyIceberg; credentials come from the environment."""
    endpoint = s3.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    properties = {"s3.endpoint": endpoint, "s3.region": s3.region}
    if endpoint or s3.addressing_style != "auto":
        properties["s3.force-virtual-addressing"] = str(s3.addressing_style == "virtual").lower()
    return {name: value for name, value in properties.items() if value is not None}


def _listed(table: "Table") -> defaultdict[date, set[str]]:
    """The files that the table lists, by date."""
    files = table.inspect.data_files() if table.current_snapshot() else None
    found = defaultdict[date, set[str]](set)
    for file in files.select(["file_path", "partition"]).to_pylist() if files is not None else ():
        found[file["partition"]["run_date"]].add(file["file_path"])
    return found


def _published(storage: Storage) -> defaultdict[date, set[str]]:
    """The files of the published runs, by date; those without a row say nothing of their date."""
    with ThreadPoolExecutor(_PARALLEL) as pool:
        manifests = pool.map(lambda day: find_json(storage, manifest_key(day)), published_dates(storage))
    found = defaultdict[date, set[str]](set)
    for manifest in manifests:
        if manifest is not None:
            files = {storage.name(file["key"]) for file in manifest["files"] if file["rows"]}
            found[date.fromisoformat(manifest["run_date"])] = files
    return found


def _expire_snapshots(table: "Table") -> None:
    """Earlier snapshots list files that are deleted from the store: nothing can be read by them."""
    table.refresh()
    current = table.metadata.current_snapshot_id
    earlier = [snapshot.snapshot_id for snapshot in table.metadata.snapshots if snapshot.snapshot_id != current]
    table.maintenance.expire_snapshots().by_ids(earlier).commit()
