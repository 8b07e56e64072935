"""Measurements of memory, which other tests' threads must not meet.

Python 3.11 crashes where `tracemalloc` is on and a thread of Ray, Arrow or polars comes by (python/cpython#128679).
"""

import multiprocessing
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa


def traced(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int, int]:
    """What a function returns in a process of its own, and the most memory that it held there: Python's, and Arrow's.

    The function is one of a module, and what travels can be pickled. It is called twice.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(_traced, function, *arguments).result()


def _traced(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int, int]:
    function(*arguments)  # what it imports does not count
    tracemalloc.start()
    result = function(*arguments)
    return result, tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory()


def private_mb(function: Callable[..., Any], *arguments: Any) -> float:
    """What a process of its own holds more, in MB that no other has and no file stands for, while it has the result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        return processes.submit(_private_mb, function, *arguments).result()


def _private_mb(function: Callable[..., Any], *arguments: Any) -> float:
    before = _anonymous_mb()
    result = function(*arguments)
    held = _anonymous_mb() - before
    del result
    return held


def _anonymous_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
