"""The cluster's resources: what a verb asks for, the wait until they are there, and the watch while it works.

Ray waits in silence and for ever for what it does not have. Here the console is told every minute, and
`workers.resources_timeout_s` is the end of it.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from allmrec.core.errors import JobTimeout
from allmrec.core.host import Host, look
from jobs.runtime.console import Console
from jobs.runtime.waiting import in_background

T = TypeVar("T")
Node = Mapping[str, Any]  # of `ray.nodes()`

_TELL_S = 60  # from one event to the next
_LOOK_S = 5  # from one look at the cluster to the next


@dataclass(frozen=True)
class Resources:
    """`count` workers with `cpus` CPUs and `gpus` GPUs each; a worker runs on one node."""

    count: int
    cpus: float = 1
    gpus: float = 0

    @property
    def bundle(self) -> dict[str, float]:
        """Of one worker, by Ray's names."""
        return {name: amount for name, amount in {"CPU": self.cpus, "GPU": self.gpus}.items() if amount}

    def room(self, node: Node) -> int:
        """How many of these workers a node has room for when nothing else runs there."""
        return min(int(node["Resources"].get(name, 0) / amount) for name, amount in self.bundle.items())

    def shortage(self, nodes: list[Node]) -> str:
        """What is missing, in words."""
        short = []
        for name, amount in reversed(self.bundle.items()):  # GPUs first: what clusters lack
            there = sum(node["Resources"].get(name, 0) for node in nodes)
            if there < self.count * amount:
                short.append(f"{_counted(self.count * amount, name)} ({there:g} in the cluster)")
        each = " and ".join(_counted(amount, name) for name, amount in reversed(self.bundle.items()))
        return (
            ", ".join(short) or f"room for {_counted(self.count, 'worker')} of {each} (in use, or in parts too small)"
        )


def _counted(amount: float, name: str) -> str:
    return f"{amount:g} {name}{'' if amount == 1 else 's'}"


def alive() -> list[Node]:
    """The cluster's nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def look_at(node: Node, folders: list[str]) -> Host:
    """`look` on a node."""
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=there)(look)
    found: Host = ray.get(task.remote(folders))
    return found


def await_resources(requested: Resources, console: Console, timeout_s: float) -> None:
    """Return once Ray has room for all workers at the same time; meanwhile a cluster with an autoscaler grows.

    Raises:
        JobTimeout: it has none for `timeout_s`.
    """
    group, shortage = placement_group([requested.bundle] * requested.count), _Shortage(requested, console, timeout_s)
    try:
        while not group.wait(timeout_seconds=min(_LOOK_S, timeout_s)):
            shortage.lasts()
    finally:
        remove_placement_group(group)


class _Shortage:
    """For how long workers have had no room; tells of it every minute, and ends it."""

    def __init__(self, requested: Resources, console: Console, timeout_s: float):
        self.requested, self.console, self.timeout_s = requested, console, timeout_s
        self.began, self.told = time.monotonic(), -math.inf

    def lasts(self) -> None:
        now = time.monotonic()
        waited_s, missing = now - self.began, self.requested.shortage(alive())
        if waited_s >= self.timeout_s:
            raise JobTimeout(
                f"waited {waited_s:.0f} s for {missing}: add nodes, lower workers.num_workers or the CPUs and GPUs of "
                "each (workers.cpus_per_worker, gpus_per_worker), or raise workers.resources_timeout_s; run again "
                "to resume"
            )
        if now - self.told >= _TELL_S:
            self.told = now
            self.console.event(f"waiting for {missing}", waited_s=round(waited_s), timeout_s=self.timeout_s)


class Watch:
    """Looks whether the nodes that are left have room for `least` workers."""

    def __init__(self, least: Resources, console: Console, timeout_s: float):
        self.least, self.console, self.timeout_s = least, console, timeout_s
        self.shortage: _Shortage | None = None

    def look(self) -> None:
        """Raises JobTimeout when they have had none for `timeout_s`."""
        if sum(map(self.least.room, alive())) >= self.least.count:
            self.shortage = None
            return
        self.shortage = self.shortage or _Shortage(self.least, self.console, self.timeout_s)
        self.shortage.lasts()


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)  # of the step that runs


@contextmanager
def watching(watch: Watch | None) -> Iterator[None]:
    """What waits for Ray within looks at the cluster meanwhile."""
    before = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(before)


def guarded(results: Iterator[T]) -> Iterator[T]:
    """The results as they come. Raises JobTimeout as `Watch.look` does."""
    watch = _watch.get()
    return results if watch is None else in_background(results, lambda: _LOOK_S, watch.look, "guarded")
