"""Ray Data for the jobs: one task a number, quiet, and with the user's errors as they were raised.

Work is dealt by numbers (of pieces of the input, of shards) and never by Ray's blocks, so a result cannot depend
on them. Transforms are plain callables of `allmrec`, which take `batch["id"]`, an array of one number.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray.data
from ray.exceptions import RayError

Transform = Callable[[dict[str, Any]], Iterator[pa.Table]]


def over(count: int, transform: Transform) -> ray.data.Dataset:
    """`transform` on each of the numbers 0 ... count - 1, a task each."""
    return ray.data.range(count, override_num_blocks=count).map_batches(transform, batch_size=1)


def tables(dataset: ray.data.Dataset) -> Iterator[pa.Table]:
    """Run a dataset and take its blocks as they come.

    Raises:
        ValueError: a transform's own, as it was raised.
        ray.exceptions.RayError: anything else that went wrong in a task.
    """
    ray.data.DataContext.get_current().enable_progress_bars = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # what fails is raised; Ray's own log file has the rest
    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            cause = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(cause, ValueError) and not isinstance(cause, RayError):
                raise cause from None
        raise
