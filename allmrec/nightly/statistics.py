"""What a committed shard holds: the audit, and statistics that add up over shards.

Read back from the store, so that a run that was resumed is measured whole. Everything is a sum or a histogram of fixed
bins, which does not grow with the users; counts by item are no matter of the driver (`core.count_drafts`).

Dimensions: I = n + 1 items, K = top_k, P pairs of a user and an item
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.data.sequences import num_shards
from allmrec.nightly.audit import audit_finished_shard, audit_finished_vectors
from allmrec.nightly.candidates import hidden
from allmrec.nightly.counters import report_of_counters
from allmrec.nightly.samples import sample_key, sample_users
from allmrec.nightly.score import LLM, POPULAR, TEACHER, NightlyJob
from allmrec.nightly.vectors import items_of_shard

SOURCES = (LLM, TEACHER, POPULAR)
_TAIL = (1, 3, 10, 30, 100, 300, 1000)
# Probabilities in twentieths; scores of the teacher go beyond them on both sides.
SCORE_EDGES = np.array([*(-edge for edge in reversed(_TAIL)), *(np.arange(20) / 20), *_TAIL])
OVERLAP_BINS = 10
ITEMS = "items"  # in item_counts: recommendations of each item, int64 (I,)
STATISTICS = (
    "sources",  # users by SOURCES
    "lengths",  # users by the length of their list, 0 ... K
    "rank_scores",  # sum of the scores at each rank, (K,), of users who do not get popular items
    "rank_counts",  # and how many there are
    "first_scores",  # those at rank 1 by the bins between SCORE_EDGES, with one bin more on either side
    "last_first_scores",  # the same of the previous run
    "overlap",  # users of both runs by the Jaccard similarity of their lists, in OVERLAP_BINS
    "overlap_sum",  # sum of that, (1,)
)


class AuditShards(ShardTask):
    """Audits a committed shard; reports its sha256 (in `details`), its own counters, and `statistics`.

    Raises ValueError for a shard that does not pass the audit.
    """

    def __init__(self, job: NightlyJob):
        self.job = job

    def process(self, shard: int) -> Report:
        job, items = self.job, self.job.items()
        filter, catalogue = items.filter, items.catalogue
        users = job.users.read(shard, items.index_P).users
        seen, top_k = hidden(users, job.config), job.config.top_k
        digest = audit_finished_shard(job.run, shard, users.user_ids, seen, catalogue, top_k, filter)
        if job.config.publish_vectors:
            published = items_of_shard(filter, shard, num_shards(job.users.sequences))
            audit_finished_vectors(job.run, shard, users, published, catalogue)
        rows, last = job.run.read_shard(shard)[0], job.previous and job.previous.read(shard)
        report = report_of_counters(job.run.shard_stats(shard))
        report.add(statistics(rows, last, catalogue.item_ids, top_k))
        key = sample_key(job.seed, job.run.run_date)
        samples = sample_users(job.config.sampled_users, key, users, rows, last, catalogue, items.new_I)
        report.details = {"sha256": digest, "samples": samples}
        return report


def statistics(rows: pa.Table, last: pa.Table | None, item_ids: pa.Array, top_k: int) -> Report:
    """Of one shard: in `sums` STATISTICS, and in `item_counts` ITEMS.

    Args:
        rows: of `recommendations`.
        last: the same shard of the previous run.
        item_ids: of the catalogue, by item index.
    """
    lists = _lists(rows)
    entries, lengths = lists.flatten(), pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    indices = pc.index_in(entries.field("item_id"), value_set=item_ids).to_numpy(zero_copy_only=False)
    personal = _personal(rows)
    place = np.repeat(personal, lengths)
    rank = entries.field("rank").to_numpy()[place] - 1
    overlap = _overlap(rows, last) if last is not None else np.zeros(0)
    sums = {
        "sources": [pc.sum(pc.equal(rows.column("source"), source)).as_py() or 0 for source in SOURCES],
        "lengths": np.bincount(lengths, minlength=top_k + 1),
        "rank_scores": np.bincount(rank, entries.field("score").to_numpy()[place], top_k),
        "rank_counts": np.bincount(rank, minlength=top_k),
        "first_scores": _first_scores(rows),
        "last_first_scores": _first_scores(last) if last is not None else np.zeros(len(SCORE_EDGES) + 1),
        "overlap": np.histogram(overlap, OVERLAP_BINS, (0, 1))[0],
        "overlap_sum": [overlap.sum()],
    }
    return Report(
        sums={name: np.asarray(value, dtype=np.float64) for name, value in sums.items()},
        item_counts={ITEMS: np.bincount(indices, minlength=len(item_ids))},
    )


def _first_scores(rows: pa.Table) -> np.ndarray:
    lists = _lists(rows)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    first = lists.offsets.to_numpy()[:-1][_personal(rows) & (lengths > 0)] - lists.offsets[0].as_py()
    scores = lists.flatten().field("score").to_numpy()[first]
    return np.bincount(np.searchsorted(SCORE_EDGES, scores, side="right"), minlength=len(SCORE_EDGES) + 1)


def _overlap(rows: pa.Table, last: pa.Table) -> np.ndarray:
    """|A ∩ B| / |A ∪ B| of the two lists of each user who has both."""
    both = last.filter(pc.is_in(last.column("user_id"), rows.column("user_id").combine_chunks()))
    users = both.column("user_id").combine_chunks()
    mine = rows.take(pc.index_in(users, rows.column("user_id").combine_chunks()))
    ids = pc.unique(pa.chunked_array([_lists(table).flatten().field("item_id") for table in (mine, both)]))
    pairs, sizes = [], []
    for table in (mine, both):
        lists = _lists(table)
        sizes.append(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
        items = pc.index_in(lists.flatten().field("item_id"), ids).to_numpy(zero_copy_only=False)
        pairs.append(np.repeat(np.arange(len(users)), sizes[-1]) * (len(ids) + 1) + items)
    shared = np.bincount(np.intersect1d(*pairs) // (len(ids) + 1), minlength=len(users))
    return shared / np.maximum(sizes[0] + sizes[1] - shared, 1)


def _personal(rows: pa.Table) -> np.ndarray:
    return pc.not_equal(rows.column("source"), POPULAR).to_numpy()


def _lists(rows: pa.Table) -> pa.ListArray:
    return pa.concat_arrays([pa.array([], rows.schema.field("items").type), *rows.column("items").chunks])
