"""Who is known to a workspace: users with events, whether or not the filters kept them, items, and the known excluded.

Of those who were excluded the histories remember hashes alone. One file of a table is read at a time.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.artifacts import MANIFEST, read_manifest, read_part, read_parts, read_table
from allmrec.core.hashing import fingerprint, shard_of
from allmrec.core.workspace import Workspace
from allmrec.data.sequences import num_shards

USER, ITEM = 0, 1  # kinds of id
KNOWN = "excluded_known"  # in the histories' manifest: hashes of excluded ids that a log or catalogue has named


def id_hash(kind: int, id: str) -> str:
    """What a manifest may say of an id that must not appear."""
    return fingerprint([kind, id])


@dataclass(frozen=True)
class Known:
    workspace: Workspace

    def users(self, ids: pa.Array) -> np.ndarray:
        """Which of these ids are known: bool (N,)."""
        found = np.zeros(len(ids), dtype=bool)
        if len(ids) and self.workspace.sequences.exists(MANIFEST):
            shards = num_shards(self.workspace.sequences)
            shard_N = shard_of(ids, shards)
            for shard in np.unique(shard_N).tolist():
                mine = np.flatnonzero(shard_N == shard)
                found[mine] = self.users_of(shard, ids.take(pa.array(mine)))
        return found

    def users_of(self, shard: int, ids: pa.Array) -> np.ndarray:
        """As `users`, of ids that are all of one shard."""
        histories = self.workspace.histories
        if histories.exists(MANIFEST):  # `sequences` lacks those of too few events
            manifest = read_manifest(histories)
            table = read_part(histories, manifest, manifest.stats["shards"][shard]["events"])
        else:
            table = read_table(self.workspace.sequences, [shard])
        return self._among(USER, ids, [table.column("user_id")])

    def items(self, ids: pa.Array) -> np.ndarray:
        """Which of these ids the catalogue has, or had: bool (N,)."""
        items = self.workspace.items
        parts = read_parts(items, ["item_id"]) if items.exists(MANIFEST) else iter(())
        return self._among(ITEM, ids, (part.column("item_id") for part in parts))

    @cached_property
    def _excluded(self) -> frozenset[str]:
        found = self.workspace.histories.exists(MANIFEST)
        return frozenset(read_manifest(self.workspace.histories).stats.get(KNOWN, ()) if found else ())

    def _among(self, kind: int, ids: pa.Array, known: Iterable[pa.ChunkedArray]) -> np.ndarray:
        found = np.zeros(len(ids), dtype=bool)
        for part in known:
            found |= pc.is_in(ids, part.cast(pa.string())).to_numpy(zero_copy_only=False)
        if self._excluded:
            rest = np.flatnonzero(~found)
            found[rest] = [id_hash(kind, id) in self._excluded for id in ids.take(pa.array(rest)).to_pylist()]
        return found
