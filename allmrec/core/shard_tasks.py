"""Tasks over numbers (of shards, of pieces of the input), and the report that a task over a shard sends back.

A task is a plain callable for batches of numbers, so whatever runs it needs to know nothing else. A report is one row
of REPORT, whatever the task: typed counters, entries of the files that it wrote, arrays, and what is peculiar to one
task as JSON. What the counters are called and mean is the business of the task.

Dimensions: I = n + 1 items (0 is padding)
"""

import json
import socket
import sys
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import pyarrow as pa

from allmrec.core.errors import exit_code
from allmrec.core.masking import masked

_COUNTER = pa.map_(pa.string(), pa.int64())
_FILE = pa.struct([("sha256", pa.string()), ("size", pa.int64()), ("rows", pa.int64())])
REPORT = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("counts", _COUNTER, nullable=False),
        pa.field("dropped", _COUNTER, nullable=False),
        pa.field("rejected", _COUNTER, nullable=False),
        pa.field("sources", _COUNTER, nullable=False),
        pa.field("seconds", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("files", pa.map_(pa.string(), _FILE), nullable=False),
        pa.field("item_counts", pa.map_(pa.string(), pa.list_(pa.int64())), nullable=False),
        pa.field("sums", pa.map_(pa.string(), pa.list_(pa.float64())), nullable=False),
        pa.field("details", pa.string(), nullable=False),  # JSON
    ]
)
COUNTERS = ("counts", "dropped", "rejected", "sources")
ARRAYS = ("item_counts", "sums")
_FAILURE = "failure"  # in the details


@dataclass(frozen=True)
class Failure:
    """Why a shard was not done."""

    error: str  # in one line
    exit_code: int  # see `allmrec.core.errors`
    host: str


@dataclass(eq=False)
class Report:
    """What a task did on one shard, or on several whose reports were added up."""

    shard: int = -1  # -1: of several
    counts: Counter[str] = field(default_factory=Counter)  # how much there was, by what was counted
    dropped: Counter[str] = field(default_factory=Counter)  # what was left out on purpose, by reason
    rejected: Counter[str] = field(default_factory=Counter)  # what could not be used, by reason
    sources: Counter[str] = field(default_factory=Counter)  # rows by what they come from
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    files: dict[str, dict[str, Any]] = field(default_factory=dict)  # name → its entry for the manifest
    item_counts: dict[str, np.ndarray] = field(default_factory=dict)  # int64 (I,) each, by item_index
    sums: dict[str, np.ndarray] = field(default_factory=dict)  # float64 (any,) each
    details: dict[str, Any] = field(default_factory=dict)  # JSON-able; not added up

    @property
    def failure(self) -> Failure | None:
        """Of a shard that was not done; see `Attempt`."""
        return Failure(**self.details[_FAILURE]) if _FAILURE in self.details else None

    def add(self, other: "Report") -> None:
        """Add a report: counters and arrays name by name, files side by side. Details stay with their shard."""
        for kind in (*COUNTERS, "seconds"):
            mine = getattr(self, kind)
            for name, count in getattr(other, kind).items():
                mine[name] = mine.get(name, 0) + count
        for kind in ARRAYS:
            mine = getattr(self, kind)
            for name, values in getattr(other, kind).items():
                mine[name] = mine[name] + values if name in mine else values
        assert self.files.keys().isdisjoint(other.files), "a file is written by one shard"
        self.files |= other.files

    def to_table(self) -> pa.Table:
        """One row of REPORT."""
        row = {name: list(getattr(self, name).items()) for name in (*COUNTERS, "seconds", "files")}
        columns = {name: pa.array([value], REPORT.field(name).type) for name, value in row.items()}
        columns |= {name: _to_map(getattr(self, name), REPORT.field(name).type) for name in ARRAYS}
        columns |= {"shard": pa.array([self.shard], pa.int32()), "details": pa.array([json.dumps(self.details)])}
        return pa.table([columns[name] for name in REPORT.names], schema=REPORT)


def read_reports(tables: Iterable[pa.Table]) -> Iterator[Report]:
    """The reports of tables of REPORT, in their order; a counter has no entry for what was not counted."""
    for table in tables:
        assert table.schema.equals(REPORT), "what a task reports is a row of REPORT"
        for row in range(len(table)):
            cells = {name: table.column(name)[row] for name in REPORT.names}
            values: dict[str, Any] = {name: Counter(dict(cells[name].as_py())) for name in COUNTERS}
            values |= {name: _from_map(cells[name]) for name in ARRAYS}
            yield Report(
                shard=cells["shard"].as_py(),
                seconds=dict(cells["seconds"].as_py()),
                files={name: _without_nulls(entry) for name, entry in cells["files"].as_py()},
                details=json.loads(cells["details"].as_py()),
                **values,
            )


def gather(reports: Iterable[Report]) -> tuple[list[Report], Report]:
    """All reports without their arrays, ordered by shard; and their sum, with the arrays.

    Takes them in any order as they come, so that the arrays of one shard at a time are held beside the sum.
    """
    by_shard: dict[int, Report] = {}
    total = Report()
    for report in reports:
        assert report.shard not in by_shard, "a shard reports once"
        total.add(report)
        report.item_counts, report.sums = {}, {}
        by_shard[report.shard] = report
    return [by_shard[shard] for shard in sorted(by_shard)], total


class Task(ABC):
    """What is done for each number of a batch, apart from all others. Yields tables."""

    @abstractmethod
    def tables(self, number: int) -> Iterator[pa.Table]:
        """The result for one number."""

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        """Args: batch: `id` is the numbers, int (B,)."""
        for number in batch["id"]:
            yield from self.tables(int(number))


class ShardTask(Task):
    """A task that sends one report a shard, as a row of REPORT; `read_reports` reads it."""

    @abstractmethod
    def process(self, shard: int) -> Report:
        """Do one shard."""

    def tables(self, number: int) -> Iterator[pa.Table]:
        report = self.process(number)
        report.shard = number
        yield report.to_table()


class Attempt(ShardTask):
    """Does a task's shards; the error of one is reported instead of raised, so that it does not end the others."""

    def __init__(self, task: type[ShardTask], *arguments: Any):
        self.task = task(*arguments)

    def process(self, shard: int) -> Report:
        try:
            return self.task.process(shard)
        except Exception as error:
            print(masked(traceback.format_exc()), file=sys.stderr)  # for the worker's log
            name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            failure = Failure(" ".join(f"{name}{error}".split()), exit_code(error), socket.gethostname())
            return Report(details={_FAILURE: asdict(failure)})


def _to_map(arrays: Mapping[str, np.ndarray], kind: pa.MapType) -> pa.MapArray:
    """One entry: the arrays by name. Without a Python object for each of their values."""
    values = [pa.array(np.asarray(array), kind.item_type.value_type) for array in arrays.values()]
    flat = pa.concat_arrays([pa.array([], kind.item_type.value_type), *values])
    offsets = pa.array(np.append(0, np.cumsum([len(array) for array in values])), pa.int32())
    lists = pa.ListArray.from_arrays(offsets, flat)
    return pa.MapArray.from_arrays([0, len(arrays)], pa.array(list(arrays), pa.string()), lists).cast(kind)


def _from_map(cell: pa.MapScalar) -> dict[str, np.ndarray]:
    entries = cast(pa.StructArray, cell.values)
    return {
        name.as_py(): values.values.to_numpy() for name, values in zip(entries.field(0), entries.field(1), strict=True)
    }


def _without_nulls(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if value is not None}
