"""A log of any size for benchmarks: drawn file by file from a seed, in bounded memory, and kept for the next run.

Items are as popular as Zipf's law says, users as active as a log-normal distribution; a part of the events bears only
its day, so that times tie. One row in a hundred is bad: an id or a time is missing or impossible, an item unknown, an
event there twice. Ids are text. The column `tie` is what breaks ties of time in `prepare`, which computes it itself; it
is for the other engines, which cannot compute it.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from allmrec.data.prepare.histories import tie_break

ROWS_PER_FILE, ROWS_PER_GROUP = 1_000_000, 1 << 18
OPENED, SECONDS = 1_420_070_400, 4 * 365 * 86_400  # the first day, as a unix time, and how long the log is
DAYS_ONLY = 0.3  # of the events
BAD = 0.002  # of the rows, of each kind
ROWS_PER_USER, ROWS_PER_ITEM = 20, 200


@dataclass(frozen=True)
class GeneratedLog:
    """`rows` events by rows / 20 users of rows / 200 items. `folder` has `log/*.parquet` and `items.parquet`."""

    rows: int
    root: Path
    seed: int = 0

    @property
    def folder(self) -> Path:
        return self.root / f"log-{self.rows}-{self.seed}"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    @property
    def items(self) -> Path:
        return self.folder / "items.parquet"

    def files(self) -> list[Path]:
        return sorted(self.log.glob("*.parquet"))

    def write(self) -> None:
        """Unless it exists."""
        if self.folder.exists():
            return
        draft = self.root / ".draft"
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "log").mkdir(parents=True)
        num_users, num_items = max(self.rows // ROWS_PER_USER, 1), max(self.rows // ROWS_PER_ITEM, 1)
        catalogue = pl.DataFrame({"item_id": _ids("B", np.arange(num_items))})
        catalogue.with_columns(title=pl.format("Item {}", "item_id")).write_parquet(draft / "items.parquet")
        activity = np.random.default_rng(self.seed).lognormal(0, 1, num_users).cumsum()
        popularity_weight = (1 / np.arange(1, num_items + 1)).cumsum()
        for number, first in enumerate(range(0, self.rows, ROWS_PER_FILE)):
            count = min(ROWS_PER_FILE, self.rows - first)
            random = np.random.default_rng([self.seed, number])
            user = np.searchsorted(activity, random.random(count) * activity[-1], side="right")
            item = np.searchsorted(popularity_weight, random.random(count) * popularity_weight[-1], side="right")
            time = OPENED + ((first + random.random(count) * count) / self.rows * SECONDS).astype(np.int64)
            time -= np.where(random.random(count) < DAYS_ONLY, time % 86_400, 0)
            events = pl.DataFrame({"user_id": _ids("A", user), "item_id": _ids("B", item), "timestamp": time})
            events = with_ties(_corrupted(events, random))
            events.write_parquet(draft / f"log/{number:05d}.parquet", row_group_size=ROWS_PER_GROUP)
        draft.rename(self.folder)


def with_ties(events: pl.DataFrame) -> pl.DataFrame:
    """With the order of events of equal times, which the other engines cannot compute."""
    users, items = (pa.array(events[name].fill_null("").to_arrow()) for name in ("user_id", "item_id"))
    every = np.arange(events.height)
    return events.with_columns(tie=tie_break(users, items, every, every))


def _ids(letter: str, numbers: np.ndarray) -> pl.Series:
    """Text that is not in the numbers' order: multiplying by an odd number permutes 32 bits."""
    mixed = pl.Series("id", numbers.astype(np.uint64) * np.uint64(2_654_435_761) % np.uint64(2**32))
    return mixed.to_frame().select(pl.format(f"{letter}{{}}", "id")).to_series()


def _corrupted(events: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
    """With a few rows corrupted in each way."""
    way = (random.random(events.height) / BAD).astype(np.int64)  # mostly none of them
    corrupted = events.with_columns(way=way).with_columns(
        user_id=pl.when(pl.col("way") == 0).then(None).otherwise("user_id"),
        item_id=pl.when(pl.col("way") == 1).then(pl.lit("unknown")).otherwise("item_id"),
        timestamp=pl.when(pl.col("way") == 2).then(None).when(pl.col("way") == 3).then(3).otherwise("timestamp"),
        # The row takes the place of its neighbour.
        **{f"{name} before": pl.col(name).shift(1) for name in events.columns},
    )
    again = (pl.col("way") == 4) & (pl.col("way").shift(1) > 4)
    return corrupted.select(
        pl.when(again).then(pl.col(f"{name} before")).otherwise(pl.col(name)).alias(name) for name in events.columns
    )
