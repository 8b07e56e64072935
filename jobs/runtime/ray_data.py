"""Ray Data and Ray's tasks for the jobs: work for each number, quiet, and with the user's errors as they were raised.

Work is assigned by numbers (of pieces of the input, of shards) and never by Ray's blocks, so a result cannot depend
on them. Transforms are plain callables of `allmrec`, which take `batch["id"]`, an array of one number. Ray Data streams
the log, and numbers to workers that hold a model. Passes of many short tasks are plain tasks: Ray Data's scheduling
would take a good part of a CPU from them.
"""

import gc
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    WorkerCrashedError,
)

from allmrec.core.errors import JobError, JobTimeout, WorkersLost
from allmrec.core.shard_tasks import Report, ShardTask, gather, read_reports
from jobs.config import WorkersConfig
from jobs.runtime.console import Bar, Console
from jobs.runtime.resources import guarded
from jobs.runtime.waiting import in_background

Transform = Callable[[dict[str, Any]], Iterator[pa.Table]]
Work: TypeAlias = ray.data.Dataset | Iterator[pa.Table]  # of `stream` and `map_actors`, or of `map_tasks`
T = TypeVar("T")
_SUBMITTED = 1000  # tasks at once; a cluster that grows sees them
_CANCEL_S = 10.0
_DEATHS = (ActorDiedError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)


def map_tasks(count: int, transform: Transform) -> Iterator[pa.Table]:
    """`transform` on each of the numbers 0 ... count - 1, a task of Ray's each: what they yield, as they end.

    What is left when the caller stops is cancelled.
    """
    # By value, as in `on_worker`.
    task = ray.remote(lambda transform, number: [*transform({"id": np.array([number])})])
    task = task.options(name=getattr(transform, "__name__", type(transform).__name__))
    stored, numbers = ray.put(transform), iter(range(count))
    running = [task.remote(stored, number) for number in islice(numbers, _SUBMITTED)]
    try:
        while running:
            done, running = ray.wait(running)
            running += [task.remote(stored, number) for number in islice(numbers, len(done))]
            for reference in done:
                yield from ray.get(reference)
    finally:
        _cancel(running)


def stream(count: int, transform: Transform) -> ray.data.Dataset:
    """As `map_tasks`, by Ray Data."""
    return ray.data.range(count, override_num_blocks=count).map_batches(transform, batch_size=1)


def map_actors(
    numbers: Sequence[int], transform: type, arguments: tuple[Any, ...], workers: WorkersConfig, at_once: int = 1
) -> ray.data.Dataset:
    """`transform(*arguments)` on each of the numbers, by workers that make it once and so load their models once.

    Args:
        at_once: numbers that a worker has in hand, each in a thread; a transform for more than one locks what it must.
    """
    # Ready blocks instead of `range`, which reads by tasks: those would wait for a CPU that the workers hold.
    blocks = [pa.table({"id": [number]}) for number in numbers]
    most = min(workers.num_workers, len(blocks))
    return ray.data.from_arrow(blocks).map_batches(
        transform,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=min(workers.min_workers or most, most),
            max_size=most,
            max_concurrent_calls_per_actor=at_once,
            enable_true_multi_threading=at_once > 1,
        ),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
    )


def iter_results(work: Work) -> Iterator[pa.Table]:
    """Run tasks or a dataset and take what they yield as it comes.

    Raises:
        ValueError: a transform's own, as it was raised; with the exit code that it has.
        JobTimeout: the cluster has had no room for a worker for `workers.resources_timeout_s`.
        WorkersLost: workers or their nodes died more often than Ray starts them again.
        ray.exceptions.RayError: anything else that went wrong in a task.
    """
    try:
        yield from guarded(work if isinstance(work, Iterator) else _blocks(work))
        return
    except RayError as error:
        told = _as_told(error)
        if told is None:
            raise
    gc.collect()  # Ray's error and its frames are a circle that holds the workers, and they their CPUs
    raise told


def _blocks(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    dataset.context.enable_progress_bars = False
    dataset.context.raise_original_map_exception = True
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # what fails is raised; Ray's own log file has the rest
    return iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))


def _cancel(tasks: list[ray.ObjectRef]) -> None:
    """End tasks, by asking until they have ended: Ray loses a request that comes as a worker is given the task."""
    deadline = time.monotonic() + _CANCEL_S
    while tasks and time.monotonic() < deadline:
        for task in tasks:
            ray.cancel(task, force=True)
        _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=1, fetch_local=False)


def on_worker(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a task of its own: what grows with the items is for workers, and not for the driver.

    Returns:
        what it returned, which comes to the driver.

    Raises:
        as `iter_results` does.
    """

    def call() -> Iterator[T]:
        # Travels by value: the worker need not import the driver's modules.
        task = ray.remote(lambda function, *arguments: function(*arguments))
        yield ray.get(task.options(name=getattr(function, "__qualname__", None)).remote(function, *arguments))

    try:
        (found,) = guarded(call())
        return found
    except RayError as error:
        told = _as_told(error)
        if told is None:
            raise
    raise told


def iter_reports(work: Work, bar: Bar) -> Iterator[Report]:
    """Run shard tasks and take their reports as they come; the bar advances by one for each."""
    for report in read_reports(iter_results(work)):
        yield report
        bar.advance()


def gather_reports(
    console: Console,
    title: str,
    count: int,
    task: ShardTask,
    run: Callable[[int, Transform], Work] = map_tasks,
) -> tuple[list[Report], Report]:
    """Run a task on each of the numbers 0 ... count - 1: its reports by number, and their sum; see `gather`.

    Args:
        run: `map_tasks` or `stream`.
    """
    with console.progress(title, count) as bar:
        reports, total = gather(iter_reports(run(count, task), bar))
    assert len(reports) == count, "every number reports"
    return reports, total


def _as_told(error: RayError) -> ValueError | None:
    """An error that needs no traceback: what a transform's ValueError said, or that workers died."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ValueError):
        kind = type(cause) if isinstance(cause, JobError) else ValueError
        return kind(str(cause).split("\n")[0])  # Ray adds lines on its retries
    if isinstance(error, ActorDiedError):  # what a worker's making raised comes as text
        raised = re.findall(r"^ValueError: (.+)$", str(error), re.MULTILINE)
        if raised:
            return ValueError(raised[-1])
    if isinstance(error, _DEATHS):
        said = str(error).strip().split("\n")[0]
        return WorkersLost(f"workers died more often than Ray starts them again; run again to resume. Ray says: {said}")
    return None


def with_timeout(
    results: Iterator[T], until: float | None, stall_timeout_s: float | None, diagnose: Callable[[], str]
) -> Iterator[T]:
    """The results as they come, for as long as they come.

    Args:
        until: the moment (`time.monotonic`) of `nightly.timeout_s`.
        stall_timeout_s: from one to the next.
        diagnose: what is unfinished; called at a timeout.

    Raises:
        JobTimeout: they took too long; with the diagnosis. What makes them is left as it is.
    """

    def wait_s() -> float | None:
        left_s = None if until is None else max(until - time.monotonic(), 0)
        return min((seconds for seconds in (left_s, stall_timeout_s) if seconds is not None), default=None)

    def late() -> None:
        over = until is not None and time.monotonic() >= until
        why = "nightly.timeout_s is over" if over else f"no result for {stall_timeout_s:g} s"
        raise JobTimeout(
            f"timed out: {why} and {diagnose()}. Run again to finish them, with more workers or, if this is how "
            f"long it takes, a larger nightly.{'timeout_s' if over else 'stall_timeout_s'}"
        )

    return in_background(results, wait_s, late, "with_timeout")
