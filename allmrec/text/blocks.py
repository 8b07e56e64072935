"""What the workers of `embed` do, by a `Plan`: embed blocks of texts, write embeddings by item."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.core.artifacts import Manifest, is_intact, shard_name, write_shard
from allmrec.core.columns import to_lists
from allmrec.core.hashing import fingerprint
from allmrec.core.shard_tasks import Task
from allmrec.core.storage import Storage
from allmrec.text.cache import TextCache
from allmrec.text.encoder import TextConfig, TextEncoder, refuse_not_finite
from allmrec.text.items import ItemTexts
from allmrec.text.plan import Plan
from schemas import item_text_embeddings


class EmbedTexts(Task):
    """Numbers of a plan's tasks → a file of the cache with a block's embeddings, and a row that says how many and when,
    block by block.

    Raises:
        ValueError: an embedding is NaN or inf; names the item, and nothing of the block is kept.
    """

    def __init__(
        self,
        config: TextConfig,
        device: str,
        threads: int,
        items: ItemTexts,
        plan: Plan,
        cache: TextCache,
        identity: str,
    ):
        torch.set_num_threads(threads)
        self.items, self.plan, self.cache, self.identity = items, plan, cache, identity
        self.encoder = TextEncoder(config, device)

    def tables(self, task: int) -> Iterator[pa.Table]:
        for rows in self.plan.rows(task):
            started = time.time()
            block = self.items.texts(rows)
            embeddings = self.encoder(block).column("embedding").combine_chunks()
            rows_ND = embeddings.flatten().to_numpy().reshape(len(embeddings), -1)
            refuse_not_finite(block.column("item_id"), rows_ND, self.identity)
            self.cache.write(block.column("text_hash"), embeddings)
            yield pa.table({"texts": [len(block)], "started": [started], "ended": [time.time()]})


@dataclass(frozen=True)
class WriteItemEmbeddings(Task):
    """Shard numbers → shards of items' embeddings; a row with the entry.

    A shard that holds the same embeddings already, undamaged, is kept.

    Raises:
        ValueError: a file of the cache is damaged.
    """

    items: ItemTexts
    plan: Plan
    cache: TextCache
    target: Storage
    before: Manifest | None  # of what exists
    encoder: str  # its identity

    def tables(self, shard: int) -> Iterator[pa.Table]:
        located, name = self.plan.located(shard), shard_name(shard)
        items = self.items.keys(located.column("item").to_numpy())
        made_of = fingerprint([self.encoder, items.to_pydict()])
        entry = self._unchanged(name, made_of)
        unchanged = entry is not None
        if entry is None:
            table = items.append_column("encoder", pa.array([self.encoder] * len(items)))
            table = table.append_column("embedding", to_lists(self._embeddings(located, items["text_hash"])))
            schema = item_text_embeddings.schema(table.schema.field("embedding").type.list_size)
            entry = write_shard(self.target, schema, name, table) | {"made_of": made_of}
        yield pa.table({"name": [name], "entry": [entry], "unchanged": [unchanged]})

    def _unchanged(self, name: str, made_of: str) -> dict[str, Any] | None:
        entry = self.before.files.get(name) if self.before else None
        same = entry is not None and entry.get("made_of") == made_of and is_intact(self.target, name, entry)
        return entry if same else None

    def _embeddings(self, located: pa.Table, hashes: pa.ChunkedArray) -> np.ndarray:
        """float32 (N, dim), of items whose texts have these hashes."""
        files, row_N = located.column("file").combine_chunks(), located.column("row").to_numpy()
        file_N, rows_ND = files.indices.to_numpy(), np.zeros((len(located), 0), np.float32)
        for number in np.unique(file_N):
            here = np.flatnonzero(file_N == number)
            cached = self.cache.read(files.dictionary[int(number)].as_py())
            known = cached.column("text_hash").take(pa.array(row_N[here]))
            assert known.equals(hashes.take(pa.array(here))), "two texts of one key are not found in this universe"
            lists = cached.column("embedding").combine_chunks()
            if not rows_ND.shape[1]:
                rows_ND = np.empty((len(located), lists.type.list_size), np.float32)
            rows_ND[here] = lists.flatten().to_numpy().reshape(len(lists), -1)[row_N[here]]
        return rows_ND
