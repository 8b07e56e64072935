"""A small shop's events in two shards, brought up to date with one log after the other."""

from collections import Counter

import numpy as np
import pyarrow as pa

from allmrec.core.artifacts import Manifest, commit
from allmrec.core.hashing import shard_of
from allmrec.core.shard_tasks import Report, read_reports
from allmrec.core.storage import open_storage
from allmrec.data.config import DataConfig
from allmrec.data.prepare.clean import BELOW_MIN_RATING, REJECTIONS, Cleaned
from allmrec.data.prepare.clean import EVENTS as EVENT_ROWS
from allmrec.data.prepare.exclusions import Exclusions
from allmrec.data.prepare.filters import FrequentItems
from allmrec.data.prepare.histories import UpdateHistories, shard_stats
from allmrec.data.prepare.item_ids import ItemIds, ItemLookup
from allmrec.data.prepare.sequences import BuildSequences
from allmrec.data.prepare.shuffle import Shuffle
from allmrec.data.splits import Split, SplitConfig
from schemas import rejected

ITEM_IDS = pa.array([f"item-{number}" for number in range(1, 10)])
HOUR = 3_600_000_000
EVENTS = [  # user, item_index, hour
    ("ann", 3, 5),
    ("ann", 1, 2),
    ("ann", 3, 1),
    ("ann", 3, 5),  # again
    ("bob", 7, 4),
    ("bob", 2, 4),  # at the same time
    ("bob", 5, 4),
    ("bob", 9, 1),
    ("cid", 4, 0),
]


def rows(events, num_shards=1):
    users = pa.array([user for user, _, _ in events], pa.string())
    good = [
        {"shard": shard, "user_id": user, "item_index": item, "timestamp": hour * HOUR}
        for shard, (user, item, hour) in zip(shard_of(users, num_shards), events, strict=True)
    ]
    return pa.Table.from_pylist(good, EVENT_ROWS)


BAD = [
    {"shard": 0, **rejection}
    for rejection in (
        {"reason": rejected.UNKNOWN_ITEM, "row": '{"user_id":"ann","item_id":"new"}', "file": "log.json", "number": 7},
        {"reason": rejected.MALFORMED, "row": "junk", "file": "log.json", "from_byte": 0, "number": 1},
    )
]


def cleaned(events, bad=BAD, filtered_out=3):
    """A log of two shards with rows that cannot be used and some that the config leaves out."""
    return Cleaned(rows(events, 2), pa.Table.from_pylist(bad, REJECTIONS), Counter({BELOW_MIN_RATING: filtered_out}))


NO_EXCLUSIONS = Exclusions.of([], [], ITEM_IDS)
EVERYTHING = FrequentItems(len(ITEM_IDS))


class Shop:
    """Two shards on a disk, brought up to date with one log after the other."""

    def __init__(self, root):
        self.storage = open_storage(str(root))
        self.histories = self.storage.at("histories")
        self.item_ids = ItemIds.write(self.storage, ItemLookup.of(ITEM_IDS))
        self.before: Manifest | None = None
        self.updates = 0

    def update(self, *logs, excluded=NO_EXCLUSIONS) -> list[Report]:
        shuffle = Shuffle(self.storage.at("shuffle"), len(logs), 2)
        for number, log in enumerate(logs):
            shuffle.write(0, number, [log])
        self.updates += 1
        new_exclusions = excluded is not NO_EXCLUSIONS
        by = f"update {self.updates}"
        draft = UpdateHistories(shuffle, self.histories, self.before, excluded, new_exclusions, self.item_ids, by)
        reports = self.run(draft)
        files = {name: entry for report in reports for name, entry in report.files.items()}
        stats = {"shards": [shard_stats(report) for report in reports]}
        self.before = commit(self.histories, "histories", by, files, stats=stats)
        return reports

    def build_sequences(self, before=None, **data) -> list[Report]:
        split = Split(SplitConfig(), 0)
        at = self.storage.at("sequences")
        return self.run(BuildSequences(self.histories, at, before, DataConfig(**data), EVERYTHING, split))

    def run(self, transform):
        return list(read_reports(transform({"id": np.arange(2)})))

    def content(self) -> dict[str, bytes]:
        shards = self.before.stats["shards"]
        names = [(number, kind, shard[kind]) for number, shard in enumerate(shards) for kind in ("events", "rejected")]
        return {f"{kind} {number}": self.histories.read(name) for number, kind, name in names}
