"""The artifact `histories`: everyone's clean events, before any filter, and the rejected rows; brought up to date here.

It remembers which files of the log it was made of. If those are unchanged and others have come (a new day), only the
new ones are read, and only the shards whose users appear in them are written; else everything is read. Either way gives
the same bytes. Its manifest is replaced at once, so a killed run leaves what was there before.
"""

import json
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Dataset

from allmrec.core.artifacts import MANIFEST, Manifest, commit, file_entry, read_manifest, read_part, to_parquet
from allmrec.core.hashing import fingerprint
from allmrec.core.storage import Storage
from allmrec.core.version import __version__
from allmrec.data.config import FILTERS
from allmrec.data.known import ITEM, KNOWN, USER, id_hash
from allmrec.data.prepare.clean import CleanInteractions
from allmrec.data.prepare.exclusions import Exclusions
from allmrec.data.prepare.histories import MentionsItems, UpdateHistories
from allmrec.data.prepare.shuffle import PartitionRows
from allmrec.data.sources.source import Source
from jobs.runtime.ray_data import iter_results, map_tasks
from jobs.runtime.step import Context


class Histories:
    """What the histories shall be made of, and those that are there, if they can be gone on with."""

    def __init__(self, context: Context, log: Source, excluded_users: list[str], excluded_items: list[str]):
        self.context, self.log = context, log
        self.excluded = excluded_users, excluded_items
        # The manifest must not name them either.
        self.hashes = {id_hash(kind, id): (kind, id) for kind, ids in enumerate(self.excluded) for id in ids}
        self.excluded_hashes = sorted(self.hashes)
        self.storage = context.artifact("histories")
        data = context.config.data
        self.files = [file.content for file in log.files]
        elsewhere = {*FILTERS, "excluded_users", "excluded_items", "items", "max_rejected_fraction"}
        read_by = data.model_dump(mode="json", exclude={"interactions": {"paths"}} | dict.fromkeys(elsewhere, True))
        self.config = {"code": __version__, **read_by}

    @cached_property
    def before(self) -> Manifest | None:
        """The histories that are there, if they are of the same config and of files that are still the same."""
        manifest = self._there
        if manifest is None or KNOWN not in manifest.stats:
            return None
        unchanged = manifest.config == self.config and all(file in self.files for file in manifest.stats["log"])
        forgiven = set(manifest.stats["excluded"]) - set(self.excluded_hashes)
        return manifest if unchanged and not forgiven else None

    @cached_property
    def _there(self) -> Manifest | None:
        try:
            return read_manifest(self.storage)
        except ValueError:  # there are none, or they are damaged
            return None

    def known_items(self) -> list[str]:
        """Ids of the items that have their numbers, by index from 1."""
        if self.before is None:
            return []
        ids: list[str] = read_part(self.storage, self.before, self.before.stats["items"]).column("item_id").to_pylist()
        return ids

    def update(self, item_ids: pa.Array) -> Manifest:
        """Bring them up to date.

        Args:
            item_ids: string (n,), by item index from 1; begins with `known_items`.
        """
        excluded = Exclusions.of(*self.excluded, item_ids)
        tables = dict(self.log.versions)
        made_of = {"log": self.files, "tables": tables, "excluded": self.excluded_hashes}
        identity = fingerprint({"config": self.config, "items": item_ids.to_pylist(), **made_of})
        if self.before is not None and self.before.fingerprint == identity:
            return self.before
        before = self.before if self._goes_on(item_ids) else None
        exchange = self.context.artifact("drafts/exchange")
        clear(exchange)
        named = [set[str](), {*item_ids.to_pylist()}]  # users and items; nobody else is in the lists' hashes
        try:
            draft = UpdateHistories(
                exchange=exchange,
                pieces=self._deal(before, exchange, excluded, item_ids, named),
                histories=self.storage,
                before=before,
                excluded=excluded,
                new_exclusions=before is not None and before.stats["excluded"] != self.excluded_hashes,
                item_ids=item_ids,
                fingerprint=identity,
            )
            num_shards = self.context.config.data.num_shards
            reports, _ = shard_reports(self.context, "order events", map_tasks(num_shards, draft))
        finally:
            clear(exchange)
        files = {name: entry for report in reports.values() for name, entry in report.pop("files").items()}
        items = f"items-{identity[:12]}.parquet"
        data = to_parquet(pa.table({"item_id": item_ids}))
        self.storage.write(items, data)
        files[items] = file_entry(data, rows=len(item_ids))
        for report in reports.values():
            for ids, found in zip(named, report.pop("named"), strict=True):
                ids.update(found)
        stats = {
            **made_of,
            KNOWN: self._known(named),
            "items": items,
            "shards": [reports[shard] for shard in range(num_shards)],
        }
        manifest = commit(self.storage, "histories", identity, files, self.config, stats)
        for entry in list(self.storage.list()):
            if entry.key not in {MANIFEST, *files}:
                self.storage.delete(entry.key)
        return manifest

    def excluded_known(self, manifest: Manifest) -> tuple[list[str], list[str]]:
        """The excluded users and items that the log or the catalogue has, or had before they were excluded."""
        known = [self.hashes[hash] for hash in manifest.stats[KNOWN]]
        return [id for kind, id in known if kind == USER], [id for kind, id in known if kind == ITEM]

    def _known(self, named: list[set[str]]) -> list[str]:
        """Hashes of those whom this log names, and of those whom an earlier one did: it may have lost them since."""
        before = {*self._there.stats.get(KNOWN, ())} if self._there else set()
        now = {hash for hash, (kind, id) in self.hashes.items() if id in named[kind]}
        return sorted(now | (before & self.hashes.keys()))

    def _goes_on(self, item_ids: pa.Array) -> bool:
        """Whether no rejected row names an item that has come since."""
        if self.before is None:
            return False
        new = item_ids[len(self.known_items()) :]
        if not len(new):
            return True
        names = MentionsItems(self.storage, self.before, new)
        shards = len(self.before.stats["shards"])
        return not any(table.column("names")[0].as_py() for table in iter_results(map_tasks(shards, names)))

    def _deal(
        self,
        before: Manifest | None,
        exchange: Storage,
        excluded: Exclusions,
        item_ids: pa.Array,
        named: list[set[str]],
    ) -> int:
        """Read the files that are new into the exchange: how many pieces. Adds whom they name of the excluded."""
        old = before.stats["log"] if before is not None else []
        new = {file["uri"] for file in self.files if file not in old}
        log = replace(self.log, pieces=tuple(piece for piece in self.log.pieces if piece.uri in new))
        if log.pieces:
            data = self.context.config.data
            deal = PartitionRows(CleanInteractions(log, data, item_ids), exchange, excluded, data.num_shards)
            with self.context.console.progress("read the log", len(log.pieces)) as bar:
                for table in iter_results(map_tasks(len(log.pieces), deal)):
                    for ids, found in zip(named, table.columns, strict=True):
                        ids.update(pc.list_flatten(found).to_pylist())
                    bar.advance(len(table))
        return len(log.pieces)


def shard_reports(context: Context, title: str, dataset: Dataset) -> tuple[dict[int, dict[str, Any]], np.ndarray]:
    """Run a pass over shards: what it reports by shard, and the sum of the shards' item counts, int64."""
    reports: dict[int, dict[str, Any]] = {}
    item_counts = np.zeros(1, dtype=np.int64)
    with context.console.progress(title, context.config.data.num_shards) as bar:
        for table in iter_results(dataset):
            for shard, report, counts in zip(*table.columns, strict=True):
                assert shard.as_py() not in reports, "a shard reports once"
                reports[shard.as_py()] = json.loads(report.as_py())
                item_counts = item_counts + counts.values.to_numpy()
                bar.advance()
    return reports, item_counts


def clear(storage: Storage) -> None:
    """Take a folder's files away, the manifest first."""
    storage.delete(MANIFEST)
    for entry in list(storage.list()):
        storage.delete(entry.key)
