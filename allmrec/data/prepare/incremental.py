"""What the artifact `histories` is made of, and how much of the previous one stays.

It remembers which files of the log it was made of. If those are unchanged and others were added (a new day), only the
new ones are read, and only the shards whose users appear in them are written; else everything is read. Either way gives
the same bytes: also then an item that a catalogue had once is known, so its events stay when it leaves the catalogue.
Knows neither tasks nor Ray; `histories` has what is done for each shard.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import ArtifactWriter, Manifest, read_manifest, read_part, write_shard
from allmrec.core.hashing import fingerprint_with
from allmrec.core.shard_tasks import Report
from allmrec.core.storage import Storage
from allmrec.data.config import FILTERS, DataConfig
from allmrec.data.known import ITEM, KNOWN, USER, id_hash
from allmrec.data.prepare.exclusions import Exclusions
from allmrec.data.prepare.histories import UpdateHistories, shard_stats
from allmrec.data.prepare.item_ids import ItemIds
from allmrec.data.prepare.item_shards import NumberedItems, number_catalogue
from allmrec.data.prepare.shuffle import Shuffle
from allmrec.data.sources.source import Source

ALGORITHM = 1  # raised when the same log gives other histories; see docs/upgrading.md
_ITEM_IDS = pa.schema([("item_id", pa.string())])  # by item_index - 1


@dataclass(frozen=True)
class LogItems:
    """What histories need of the catalogue's items, without their ids."""

    ids: ItemIds
    known: int  # of them, the first ones
    identity: str  # fingerprint of the histories
    exclusions: Exclusions
    excluded: list[str]  # excluded items that the catalogue has

    @property
    def file(self) -> str:
        """Of the artifact, with the ids."""
        return f"items-{self.identity[:12]}.parquet"


class HistoriesPlan:
    """What the histories are made of, and the previous ones if they can be extended."""

    def __init__(
        self, storage: Storage, log: Source, data: DataConfig, excluded_users: list[str], excluded_items: list[str]
    ):
        self.storage, self.log = storage, log
        self.excluded = excluded_users, excluded_items
        # The manifest must not name them either.
        self.hashes = {id_hash(kind, id): (kind, id) for kind, ids in enumerate(self.excluded) for id in ids}
        elsewhere = {*FILTERS, "excluded_users", "excluded_items", "items", "max_rejected_fraction"}
        exclude = {"interactions": {"paths"}} | dict.fromkeys(elsewhere, True)
        read_by = data.model_dump(mode="json", exclude=exclude, exclude_defaults=True)
        self.config = {"algorithm": ALGORITHM, **read_by}
        self.made_of: dict[str, Any] = {
            "log": [file.content for file in log.files],
            "tables": dict(log.versions),
            "excluded": sorted(self.hashes),
        }

    @cached_property
    def previous(self) -> Manifest | None:
        """The histories that exist, if they are of the same config and of files that have not changed."""
        manifest = self._existing
        if manifest is None or KNOWN not in manifest.stats:
            return None
        unchanged = manifest.config == self.config
        unchanged &= all(file in self.made_of["log"] for file in manifest.stats["log"])
        readmitted = set(manifest.stats["excluded"]) - self.hashes.keys()
        return manifest if unchanged and not readmitted else None

    @cached_property
    def _existing(self) -> Manifest | None:
        try:
            return read_manifest(self.storage)
        except ValueError:  # there are none, or they are damaged
            return None

    def known_items(self) -> pa.Array:
        """Ids of the items that have their numbers, by index from 1: of all catalogues that were prepared here."""
        if self._existing is None or "items" not in self._existing.stats:
            return pa.array([], pa.string())
        table = read_part(self.storage, self._existing, self._existing.stats["items"])
        return table.column("item_id").combine_chunks()

    def number(self, files: Sequence[str], drafts: Storage, existing: Storage) -> tuple[NumberedItems, LogItems]:
        """Number the items of a catalogue; holds the ids of all. See `number_catalogue`."""
        numbered = number_catalogue(drafts, files, self.known_items(), existing)
        return numbered, self.with_items(numbered.ids, numbered.known)

    def with_items(self, ids: ItemIds, known: int) -> LogItems:
        """What the histories need of the catalogue's items; holds their ids.

        Args:
            ids: begins with `known_items`.
            known: number of these.
        """
        item_ids, excluded = ids.read(), pa.array(self.excluded[1], pa.string())
        return LogItems(
            ids,
            known,
            fingerprint_with({"config": self.config, **self.made_of}, "items", item_ids),
            Exclusions.of(*self.excluded, item_ids),
            excluded.filter(pc.is_in(excluded, value_set=item_ids)).to_pylist(),
        )

    def unread(self, previous: Manifest | None) -> Source:
        """The log's files that `previous` was not made of."""
        old = previous.stats["log"] if previous is not None else []
        new = {file["uri"] for file in self.made_of["log"] if file not in old}
        return replace(self.log, pieces=tuple(piece for piece in self.log.pieces if piece.uri in new))

    def update(self, previous: Manifest | None, shuffle: Shuffle, items: LogItems) -> UpdateHistories:
        """The task that makes the files."""
        return UpdateHistories(
            shuffle=shuffle,
            histories=self.storage,
            before=previous,
            excluded=items.exclusions,
            new_exclusions=previous is not None and previous.stats["excluded"] != self.made_of["excluded"],
            items=items.ids,
            fingerprint=items.identity,
        )

    def write_items(self, items: LogItems) -> dict[str, Any]:
        """Write the items' ids; the file's entry."""
        return write_shard(self.storage, _ITEM_IDS, items.file, pa.table({"item_id": items.ids.read()}))

    def add_stats(
        self, out: ArtifactWriter, items: LogItems, pieces: Sequence[Report], shards: Sequence[Report]
    ) -> None:
        """The manifest's stats.

        Args:
            pieces: reports of `PartitionRows`.
            shards: reports of `UpdateHistories`, by shard.
        """
        details = [report.details for report in (*pieces, *shards)]
        users = {id for named in details for id in named["users"]}
        listed = {id for named in details for id in named["items"]}
        out.stats |= {
            **self.made_of,
            KNOWN: self._known(users, listed.union(items.excluded)),
            "items": items.file,
            "shards": [shard_stats(report) for report in shards],
        }

    def discard(self, files: Iterable[str]) -> None:
        """Delete files of histories that are not to be committed; those that the existing ones have stay."""
        kept = self._existing.files if self._existing else {}
        for name in set(files) - kept.keys():
            self.storage.delete(name)

    def excluded_known(self, stats: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """The excluded users and items that the log or the catalogue has, or had before they were excluded.

        Args:
            stats: as `add_stats` gives them.
        """
        known = [self.hashes[hash] for hash in stats[KNOWN]]
        return [id for kind, id in known if kind == USER], [id for kind, id in known if kind == ITEM]

    def _known(self, users: set[str], items: set[str]) -> list[str]:
        """Hashes of the excluded that this log names, and of those that an earlier one did: it may have lost them."""
        before = {*self._existing.stats.get(KNOWN, ())} if self._existing else set()
        now = {hash for hash, (kind, id) in self.hashes.items() if id in (users, items)[kind]}
        return sorted(now | (before & self.hashes.keys()))
