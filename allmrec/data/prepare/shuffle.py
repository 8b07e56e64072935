"""From pieces of the log to shards of users, through runs in storage.

Each piece becomes one run, with the rows of all shards. With many pieces and shards, rounds of merging follow, like the
passes of a radix sort: a round turns `fan_in` runs into about as many, each with `fan_in` times the pieces and a
`fan_in`th of the shards. A run stays about as large as a piece, and the rows of a shard end up in few runs, so requests
grow with pieces + shards and not with their product.

No process holds more than a piece or a shard at once. `clean` knows what a row means, `histories` what becomes of a
shard's rows, and `runs` the layout of a run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from math import ceil

from allmrec.core.shard_tasks import Report, ShardTask
from allmrec.core.storage import Storage
from allmrec.data.prepare.clean import EVENTS, REJECTIONS, Cleaned, CleanInteractions, to_arrow, to_polars
from allmrec.data.prepare.exclusions import EXCLUDED, Exclusions
from allmrec.data.prepare.runs import decode_part, in_chunks, read_part, write_run

MAX_FAN_IN = 128  # more small reads for each piece and shard take longer than one more round
_READERS = 8  # parts that a task fetches at once


@dataclass(frozen=True)
class Shuffle:
    """Which runs exist, and which of their parts each task reads.

    Runs of level 0 are those of the pieces; each round of merging makes the next level. Runs are numbered by their
    pieces first and then by their shards. A shard is read as a run of one level more, with all pieces.
    """

    storage: Storage
    pieces: int
    num_shards: int
    max_fan_in: int = MAX_FAN_IN

    @cached_property
    def rounds(self) -> int:
        """Rounds of merging: the fewest with which no run or shard is read from more than `max_fan_in` parts."""
        fewer = min(self.pieces, self.num_shards)
        return next(rounds for rounds in count() if self.max_fan_in ** (rounds + 1) >= fewer)

    @cached_property
    def fan_in(self) -> int:
        """Runs that are merged into one, and shares that their shards are divided into; the same in all rounds."""
        fewer = min(self.pieces, self.num_shards)
        return next(fan_in for fan_in in count(1) if fan_in ** (self.rounds + 1) >= fewer)

    def num_runs(self, level: int) -> int:
        return ceil(self.pieces / self._shape(level)[0]) * self._shares(level)

    def sources(self, level: int, number: int) -> list[tuple[str, int]]:
        """The parts of the previous level that make up a run, ordered by pieces: the key of their run, and the part."""
        (pieces, shards), (source_pieces, source_shards) = self._shape(level), self._shape(level - 1)
        group, share = divmod(number, self._shares(level))
        first, stop = group * pieces, min((group + 1) * pieces, self.pieces)
        at, within = divmod(share * shards, source_shards)
        return [
            (self._key(level - 1, source * self._shares(level - 1) + at), within // shards)
            for source in range(first // source_pieces, ceil(stop / source_pieces))
        ]

    def read(self, level: int, number: int) -> Iterator[Cleaned]:
        """The rows of a run, from the previous level."""
        with ThreadPoolExecutor(_READERS) as pool:
            for part in pool.map(lambda source: read_part(self.storage, *source), self.sources(level, number)):
                yield from decode_part(part)

    def read_shard(self, shard: int) -> Cleaned:
        return Cleaned.concat(self.read(self.rounds + 1, shard))

    def write(self, level: int, number: int, chunks: Iterable[Cleaned]) -> None:
        """Write a run, with a part for each run of the next level that has some of its shards."""
        shards = self._shape(level)[1]
        first = number % self._shares(level) * shards
        stop = min(first + shards, self.num_shards)
        bounds = [*range(first, stop, self._shape(level + 1)[1]), stop]
        write_run(self.storage, self._key(level, number), chunks, bounds)

    def _shape(self, level: int) -> tuple[int, int]:
        """The pieces and shards of a run, at most."""
        if level > self.rounds:
            return max(self.pieces, 1), 1
        least = ceil(self.num_shards / self.fan_in**self.rounds)
        return self.fan_in**level, least * self.fan_in ** (self.rounds - level)

    def _shares(self, level: int) -> int:
        """Number of runs of a level that have the same pieces."""
        return ceil(self.num_shards / self._shape(level)[1])

    def _key(self, level: int, number: int) -> str:
        return f"{level}/run-{number:06d}"


@dataclass(frozen=True)
class PartitionRows(ShardTask):
    """Numbers of pieces → their runs; details: the excluded `users` and `items` that they name."""

    clean: CleanInteractions
    shuffle: Shuffle
    excluded: Exclusions

    def process(self, piece: int) -> Report:
        users, items = set[str](), set[str]()
        chunks = in_chunks(self.clean.read(piece))
        kept = (self._kept(chunk, users, items) for chunk in chunks) if self.excluded else chunks
        self.shuffle.write(0, piece, kept)
        return Report(details={"users": sorted(users), "items": sorted(items)})

    def _kept(self, rows: Cleaned, users: set[str], items: set[str]) -> Cleaned:
        """The rows without excluded users and items, whose ids are added to `users` and `items`."""
        events, gone = self.excluded.split(to_polars(rows.events))
        rejections, gone_rejections = self.excluded.split(to_polars(rows.rejections))
        for found, named in zip((users, items), self.excluded.named(gone, gone_rejections), strict=True):
            found.update(named)
        excluded = Counter({EXCLUDED: gone.height + gone_rejections.height})
        return Cleaned(to_arrow(events, EVENTS), to_arrow(rejections, REJECTIONS), rows.filtered_out + excluded)


@dataclass(frozen=True)
class MergeRuns(ShardTask):
    """Numbers of runs of a level → these runs, from those of the previous level."""

    shuffle: Shuffle
    level: int

    def process(self, number: int) -> Report:
        self.shuffle.write(self.level, number, in_chunks(self.shuffle.read(self.level, number)))
        return Report()
