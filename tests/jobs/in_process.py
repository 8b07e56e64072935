"""The few calls of Ray that jobs make, run in this process: what a job does can be tested without workers.

Transforms are copied by pickling, as workers get them, and called with batches of the same types. How work is spread
over workers, how errors come back and what a death does is tested with Ray itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
import torch
from ray import cloudpickle

from benchmarks.process_group import group_of_one
from jobs import train_alignment, train_baselines, train_cf, train_projection, train_recformer, train_tallrec
from jobs.config import Config
from jobs.runtime import ray_train
from jobs.runtime.console import Console
from jobs.runtime.ray_train import Loop
from jobs.runtime.step import Context, Stats, Step, execute

TRAINERS = (train_alignment, train_baselines, train_cf, train_projection, train_recformer, train_tallrec)


@contextmanager
def jobs_in_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "is_initialized", lambda: True)
        patch.setattr(ray, "nodes", lambda: [])  # no need is checked against them
        patch.setattr(ray, "remote", Remote)
        patch.setattr(ray, "get", lambda found: found)
        patch.setattr(ray, "put", lambda argument: argument)
        patch.setattr(ray, "wait", lambda found: (found[:1], found[1:]))
        patch.setattr(ray, "cancel", lambda found, force: None)
        patch.setattr(ray.data, "range", numbers)
        patch.setattr(ray.data, "from_arrow", from_arrow)
        for trainer in {*TRAINERS} - {train_tallrec}:  # which calls `fit` through train_projection
            patch.setattr(trainer, "fit", fit)
        yield


def executed(step: Step, config: Config) -> bool:
    """`execute` in this process."""
    with jobs_in_process():
        return execute(step, config, Console(log_json=True))


@contextmanager
def driver_reads_no_table() -> Iterator[None]:
    """Within, a table that is read by no task and no worker is an error: what grows with it would be on the driver."""

    def guarded(read: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(*arguments: Any, **options: Any) -> Any:
            assert _at_work, "a table is read on the driver"
            return read(*arguments, **options)

        return refuse

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((pq, "read_table"), (pq, "ParquetFile"), (pa.ipc, "open_file")):
            patch.setattr(module, name, guarded(getattr(module, name)))
        yield


_at_work: list[None] = []  # as many as there are tasks and workers at work in this process


@contextmanager
def _work() -> Iterator[None]:
    _at_work.append(None)
    try:
        yield
    finally:
        _at_work.pop()


class Remote:
    """A function, called at once, with what it would get on a worker."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def options(self, name: str) -> "Remote":
        return self

    def remote(self, *arguments: Any) -> Any:
        with _work():
            return self.function(*cloudpickle.loads(cloudpickle.dumps(arguments)))


class LocalDataset:
    """Blocks of rows, which are made when they are read."""

    def __init__(self, blocks: Callable[[], Iterator[pa.Table]]):
        self.blocks, self.context = blocks, SimpleNamespace()

    def map_batches(
        self,
        transform: Any,
        fn_constructor_args: tuple[Any, ...] = (),
        batch_size: int | None = None,
        batch_format: str = "numpy",
        **workers: Any,
    ) -> "LocalDataset":
        def mapped() -> Iterator[pa.Table]:
            made, arguments = cloudpickle.loads(cloudpickle.dumps((transform, fn_constructor_args)))
            with _work():
                call = made(*arguments) if isinstance(made, type) else made
            for block in self.blocks():
                for start in range(0, len(block), batch_size or max(len(block), 1)):
                    batch = block.slice(start, batch_size)
                    if batch_format == "numpy":
                        batch = {name: batch.column(name).to_numpy() for name in batch.column_names}
                    with _work():
                        result = call(batch)
                        results = [result] if isinstance(result, pa.Table) else [*result]
                    yield from results

        return LocalDataset(mapped)

    def repartition(self, count: int, keys: Sequence[str]) -> "LocalDataset":
        """Rows of the same key in one block."""

        def grouped() -> Iterator[pa.Table]:
            rows, (key,) = pa.concat_tables(self.blocks()), keys
            for value in rows.column(key).unique():
                yield rows.filter(pc.equal(rows.column(key), value))

        return LocalDataset(grouped)

    def iter_batches(self, **format: Any) -> Iterator[pa.Table]:
        return self.blocks()


def from_arrow(blocks: Sequence[pa.Table]) -> LocalDataset:
    return LocalDataset(lambda: iter(blocks))


def numbers(count: int, override_num_blocks: int) -> LocalDataset:
    return from_arrow([pa.table({"id": [number]}) for number in range(count)])


def fit(context: Context, verb: str, loop: Loop, loop_config: dict[str, Any], total: int) -> Stats:
    """The loop on one worker, which is this process: nothing is resumed, and what it reports goes nowhere."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")
        for trainer in TRAINERS:
            patch.setattr(trainer, "device", lambda: torch.device("cpu"))
        for module in (ray_train, train_baselines, train_projection, train_tallrec):
            patch.setattr(module, "resume", lambda: None)
        patch.setattr(ray_train, "report", lambda *arguments, **numbers: None)
        try:
            with group_of_one(folder), _work():
                return loop(loop_config)
        finally:
            torch.set_flush_denormal(False)
