"""Ray Data for the jobs: one task a number, quiet, and with the user's errors as they were raised.

Work is dealt by numbers (of pieces of the input, of shards) and never by Ray's blocks, so a result cannot depend
on them. Transforms are plain callables of `allmrec`, which take `batch["id"]`, an array of one number.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.exceptions import ActorDiedError, RayError

from jobs.config import WorkersConfig

Transform = Callable[[dict[str, Any]], Iterator[pa.Table]]


def over(count: int, transform: Transform) -> ray.data.Dataset:
    """`transform` on each of the numbers 0 ... count - 1, a task each."""
    return ray.data.range(count, override_num_blocks=count).map_batches(transform, batch_size=1)


def pooled(
    numbers: Sequence[int], transform: type, arguments: tuple[Any, ...], workers: WorkersConfig
) -> ray.data.Dataset:
    """`transform(*arguments)` on each of the numbers, by workers that make it once and so load their models once."""
    # Ready blocks instead of `range`, which reads by tasks: those would wait for a CPU that the workers hold.
    blocks = [pa.table({"id": [number]}) for number in numbers]
    return ray.data.from_arrow(blocks).map_batches(
        transform,
        fn_constructor_args=arguments,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers.num_workers, len(blocks))),
        num_cpus=workers.cpus_per_worker,
        num_gpus=workers.gpus_per_worker,
    )


def tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Run a dataset and take its blocks as they come.

    Raises:
        ValueError: a transform's own, as it was raised.
        ray.exceptions.RayError: anything else that went wrong in a task.
    """
    dataset.context.enable_progress_bars = False
    dataset.context.raise_original_map_exception = True
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # what fails is raised; Ray's own log file has the rest
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ValueError):
            raise ValueError(str(cause).split("\n")[0]) from None  # Ray adds lines on its retries
        if isinstance(error, ActorDiedError):  # what a worker's making raised comes as text
            raised = re.findall(r"^ValueError: (.+)$", str(error), re.MULTILINE)
            if raised:
                raise ValueError(raised[-1]) from None
        raise
