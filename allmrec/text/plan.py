"""What `embed` has to do, planned by one task: which texts the cache lacks, in blocks, and where every embedding is.

Tasks read the texts and leave a key and a length of each in the drafts (`NumberTexts`); `make_plan` holds no more of
an item. What it finds out goes into the drafts too, of which the tasks of `allmrec.text.blocks` read what is theirs.

Dimensions: N items, R rows of them
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.drafts import read_draft, write_draft
from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.catalogue import ITEMS_PER_SHARD
from allmrec.text.cache import Index, TextCache
from allmrec.text.items import ItemTexts, text_keys

TASKS_PER_WORKER = 16  # at least, so that workers end together
MOST_BATCHES = 16  # of a block, which is the unit of resuming
MOST_TASKS = 500  # that have several blocks: the driver keeps some 50 kB of each task

_NUMBERS = pa.schema([("key", pa.uint64()), ("length", pa.int32())])
_BLOCKS = pa.schema([("row", pa.int32())])
_LOCATED = pa.schema([("item", pa.int32()), ("file", pa.dictionary(pa.int32(), pa.string())), ("row", pa.int32())])


@dataclass(frozen=True)
class NumberTexts(ShardTask):
    """Numbers of files of `items` → what their texts are planned by, in the drafts; counts of items that lack words."""

    texts: ItemTexts
    drafts: Storage

    def process(self, file: int) -> Report:
        numbers = self.texts.numbers(file)
        write_draft(self.drafts, f"numbers-{file}", _NUMBERS, numbers.select(_NUMBERS.names).to_batches())
        lacks = {name: pc.sum(numbers.column(name)).as_py() or 0 for name in ("untitled", "undescribed")}
        return Report(counts=Counter(items=len(numbers), **lacks))


@dataclass(frozen=True)
class Plan:
    """What is to be embedded, in blocks that tasks share; or, where nothing is, where the embeddings are."""

    drafts: Storage
    missing: int = 0  # items whose texts the cache lacks
    texts: int = 0  # different ones of these
    blocks: int = 0
    tasks: int = 0
    shards: int = 0  # of items, which are `located`

    def rows(self, task: int) -> Iterator[np.ndarray]:
        """Rows of `items` that have the texts, block by block: int32 (R,)."""
        for block in range(task * self.blocks // self.tasks, (task + 1) * self.blocks // self.tasks):
            yield read_draft(self.drafts, "blocks", block).column("row").to_numpy()

    def located(self, shard: int) -> pa.Table:
        """Where the embeddings of a shard's items are: `item`, its row of `items`; `file` and `row` of the cache."""
        return read_draft(self.drafts, "located", shard)


def make_plan(drafts: Storage, files: int, cache: TextCache, batch_size: int, workers: int) -> Plan:
    """Find out which texts the cache lacks, or where all embeddings are.

    Args:
        files: of `items`, whose texts are numbered in the drafts.
        batch_size: texts that the encoder reads at once.
    """
    numbers = pa.concat_tables(read_draft(drafts, f"numbers-{file}") for file in range(files))
    index, key_N = cache.index(), numbers.column("key").to_numpy()
    file_N, row_N = index.find(key_N)
    missing = np.flatnonzero(file_N < 0)
    if not len(missing):
        write_draft(drafts, "located", _LOCATED, _by_shard(index, file_N, row_N))
        return Plan(drafts, shards=math.ceil(len(key_N) / ITEMS_PER_SHARD))
    rows = first_of_each_text(key_N, missing)
    batches = math.ceil(len(rows) / batch_size / (TASKS_PER_WORKER * workers))
    size = min(batches, MOST_BATCHES) * batch_size
    blocks = list(by_length(rows, numbers.column("length").to_numpy()[rows], size))
    write_draft(drafts, "blocks", _BLOCKS, (pa.record_batch([block.astype(np.int32)], _BLOCKS) for block in blocks))
    tasks = min(len(blocks), max(MOST_TASKS, TASKS_PER_WORKER * workers))
    return Plan(drafts, len(missing), len(rows), len(blocks), tasks)


def count_missing(items: Storage, cache: TextCache) -> tuple[int, int]:
    """How many items there are, and of how many the cache lacks the text."""
    keys = text_keys(items)
    return len(keys), int((cache.index().find(keys)[0] < 0).sum())


def first_of_each_text(key_N: np.ndarray, rows_R: np.ndarray) -> np.ndarray:
    """Those of some items' rows, ascending, whose text no earlier one has."""
    return rows_R[np.sort(np.unique(key_N[rows_R], return_index=True)[1])]


def by_length(rows_R: np.ndarray, length_R: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Blocks of rows of similar length, so that batches hold little padding; the longest first, so that those that
    are done last are short. Texts of other shards are not mixed in: so a shard is in few files."""
    for start in range(0, len(rows_R), ITEMS_PER_SHARD):
        window = slice(start, start + ITEMS_PER_SHARD)
        longest_first = rows_R[window][np.argsort(-length_R[window], kind="stable")]
        for first in range(0, len(longest_first), size):
            yield longest_first[first : first + size]


def _by_shard(index: Index, file_N: np.ndarray, row_N: np.ndarray) -> Iterator[pa.RecordBatch]:
    """Where items' embeddings are in the cache, shard by shard."""
    names = pa.array(index.files, pa.string())
    for start in range(0, len(file_N), ITEMS_PER_SHARD):
        here = slice(start, start + ITEMS_PER_SHARD)
        file = pa.DictionaryArray.from_arrays(pa.array(file_N[here], pa.int32()), names)
        item = np.arange(start, start + len(file), dtype=np.int32)
        yield pa.record_batch([pa.array(item), file, pa.array(row_N[here], pa.int32())], _LOCATED)
