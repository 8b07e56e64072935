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

import allmrec
from allmrec.artifacts import MANIFEST, Manifest, describe, read_manifest, read_part, seal, to_parquet
from allmrec.data.assemble import Draft, NamesItems
from allmrec.data.clean import CleanInteractions
from allmrec.data.config import FILTERS
from allmrec.data.exchange import Deal
from allmrec.data.forget import Forgotten
from allmrec.data.known import ITEM, KNOWN, USER, id_hash
from allmrec.data.sources import Source
from allmrec.hashing import fingerprint
from allmrec.storage import Storage
from jobs.datasets import over, tables
from jobs.step import Context


class Histories:
    """What the histories shall be made of, and those that are there, if they can be gone on with."""

    def __init__(self, context: Context, log: Source, forgotten_users: list[str], forgotten_items: list[str]):
        self.context, self.log = context, log
        self.forgotten = forgotten_users, forgotten_items
        # The manifest must not name them either.
        self.hashes = {id_hash(kind, id): (kind, id) for kind, ids in enumerate(self.forgotten) for id in ids}
        self.forgotten_hashes = sorted(self.hashes)
        self.storage = context.artifact("histories")
        data = context.config.data
        self.files = [file.content for file in log.files]
        elsewhere = {*FILTERS, "forgotten_users", "forgotten_items", "items", "max_rejected_fraction"}
        read_by = data.model_dump(mode="json", exclude={"interactions": {"paths"}} | dict.fromkeys(elsewhere, True))
        self.config = {"code": allmrec.__version__, **read_by}

    @cached_property
    def before(self) -> Manifest | None:
        """The histories that are there, if they are of the same config and of files that are still the same."""
        manifest = self._there
        if manifest is None or KNOWN not in manifest.facts:
            return None
        unchanged = manifest.config == self.config and all(file in self.files for file in manifest.facts["log"])
        forgiven = set(manifest.facts["forgotten"]) - set(self.forgotten_hashes)
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
        ids: list[str] = read_part(self.storage, self.before, self.before.facts["items"]).column("item_id").to_pylist()
        return ids

    def update(self, item_ids: pa.Array) -> Manifest:
        """Bring them up to date.

        Args:
            item_ids: string (n,), by item index from 1; begins with `known_items`.
        """
        forgotten = Forgotten.of(*self.forgotten, item_ids)
        tables = dict(self.log.versions)
        made_of = {"log": self.files, "tables": tables, "forgotten": self.forgotten_hashes}
        identity = fingerprint({"config": self.config, "items": item_ids.to_pylist(), **made_of})
        if self.before is not None and self.before.made_by == identity:
            return self.before
        before = self.before if self._goes_on(item_ids) else None
        exchange = self.context.artifact("drafts/exchange")
        clear(exchange)
        named = [set[str](), {*item_ids.to_pylist()}]  # users and items; nobody else is in the lists' hashes
        try:
            draft = Draft(
                exchange=exchange,
                pieces=self._deal(before, exchange, forgotten, item_ids, named),
                histories=self.storage,
                before=before,
                forgotten=forgotten,
                forgets=before is not None and before.facts["forgotten"] != self.forgotten_hashes,
                item_ids=item_ids,
                made_by=identity,
            )
            num_shards = self.context.config.data.num_shards
            reports, _ = shard_reports(self.context, "order events", over(num_shards, draft))
        finally:
            clear(exchange)
        files = {name: entry for report in reports.values() for name, entry in report.pop("files").items()}
        items = f"items-{identity[:12]}.parquet"
        data = to_parquet(pa.table({"item_id": item_ids}))
        self.storage.write(items, data)
        files[items] = describe(data, rows=len(item_ids))
        for report in reports.values():
            for ids, found in zip(named, report.pop("named"), strict=True):
                ids.update(found)
        facts = {
            **made_of,
            KNOWN: self._known(named),
            "items": items,
            "shards": [reports[shard] for shard in range(num_shards)],
        }
        manifest = seal(self.storage, "histories", identity, files, self.config, facts)
        for entry in list(self.storage.list()):
            if entry.key not in {MANIFEST, *files}:
                self.storage.delete(entry.key)
        return manifest

    def forgotten_known(self, manifest: Manifest) -> tuple[list[str], list[str]]:
        """The forgotten users and items that the log or the catalogue has, or had before they were forgotten."""
        known = [self.hashes[hash] for hash in manifest.facts[KNOWN]]
        return [id for kind, id in known if kind == USER], [id for kind, id in known if kind == ITEM]

    def _known(self, named: list[set[str]]) -> list[str]:
        """Hashes of those whom this log names, and of those whom an earlier one did: it may have lost them since."""
        before = {*self._there.facts.get(KNOWN, ())} if self._there else set()
        now = {hash for hash, (kind, id) in self.hashes.items() if id in named[kind]}
        return sorted(now | (before & self.hashes.keys()))

    def _goes_on(self, item_ids: pa.Array) -> bool:
        """Whether no rejected row names an item that has come since."""
        if self.before is None:
            return False
        new = item_ids[len(self.known_items()) :]
        if not len(new):
            return True
        names = NamesItems(self.storage, self.before, new)
        shards = len(self.before.facts["shards"])
        return not any(table.column("names")[0].as_py() for table in tables(over(shards, names)))

    def _deal(
        self,
        before: Manifest | None,
        exchange: Storage,
        forgotten: Forgotten,
        item_ids: pa.Array,
        named: list[set[str]],
    ) -> int:
        """Read the files that are new into the exchange: how many pieces. Adds whom they name of the forgotten."""
        old = before.facts["log"] if before is not None else []
        new = {file["uri"] for file in self.files if file not in old}
        log = replace(self.log, pieces=tuple(piece for piece in self.log.pieces if piece.uri in new))
        if log.pieces:
            data = self.context.config.data
            deal = Deal(CleanInteractions(log, data, item_ids), exchange, forgotten, data.num_shards)
            with self.context.console.progress("read the log", len(log.pieces)) as bar:
                for table in tables(over(len(log.pieces), deal)):
                    for ids, found in zip(named, table.columns, strict=True):
                        ids.update(pc.list_flatten(found).to_pylist())
                    bar.advance(len(table))
        return len(log.pieces)


def shard_reports(context: Context, title: str, dataset: Dataset) -> tuple[dict[int, dict[str, Any]], np.ndarray]:
    """Run a pass over shards: what it reports by shard, and the sum of the shards' item counts, int64."""
    reports: dict[int, dict[str, Any]] = {}
    item_counts = np.zeros(1, dtype=np.int64)
    with context.console.progress(title, context.config.data.num_shards) as bar:
        for table in tables(dataset):
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
