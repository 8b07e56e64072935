"""Memory of a process with all it starts: sampled while it runs, and bounded by a control group (Linux)."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

INTERVAL_S = 0.2
_GROUPS, _UNIFIED = Path("/sys/fs/cgroup"), "cgroup.controllers"
_WORKER = "ray::"  # begins the name of a process that does tasks


@dataclass
class Memory:
    """MiB, summed over processes; a page that several share is counted once (proportional set size).

    Shared memory is Ray's object store. The peaks of the parts need not come at once.
    """

    total: float = 0
    shared: float = 0
    private: float = 0
    driver: float = 0  # of the process itself, without pages of files
    worker: float = 0  # of the worker of Ray's that has most, likewise

    def most(self, other: "Memory") -> "Memory":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Memory(*(max(pair) for pair in pairs))


def peak(process: Popen, interval_s: float = INTERVAL_S) -> Memory:
    """Wait for the process to end; the most that it and its descendants held."""
    most = Memory()
    while process.poll() is None:
        most = most.most(held(process.pid))
        time.sleep(interval_s)
    return most


def held(root: int) -> Memory:
    """By a process and its descendants, now."""
    sum_ = Memory()
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            name = Path(f"/proc/{pid}/cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended since it was listed
            continue
        mib = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
        own = mib.get("Pss_Anon", 0)
        total, shared = mib.get("Pss", 0), mib.get("Pss_Shmem", 0)
        sum_.total, sum_.shared, sum_.private = (
            sum_.total + total,
            sum_.shared + shared,
            sum_.private + total - shared,
        )
        sum_.driver = own if pid == root else sum_.driver
        sum_.worker = max(sum_.worker, own) if name.startswith(_WORKER) else sum_.worker
    return sum_


def tree(root: int) -> list[int]:
    """A process and its descendants, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


@contextmanager
def limited(name: str, limit_mb: float) -> Iterator[Path]:
    """A control group whose processes hold at most that much together, caches of files and /dev/shm included.

    Yields:
        the file that a process writes its number into to become a member.

    Raises:
        ValueError: no group can be made here.
    """
    unified = (_GROUPS / _UNIFIED).exists()
    group = (_GROUPS if unified else _GROUPS / "memory") / name
    limit = group / ("memory.max" if unified else "memory.limit_in_bytes")
    try:
        group.mkdir(exist_ok=True)
        limit.write_text(str(int(limit_mb * 2**20)))
    except OSError as error:
        raise ValueError(
            f"no limit can be set in {_GROUPS} ({error.strerror}); run as root, or without a limit"
        ) from None
    try:
        yield group / "cgroup.procs"
    finally:
        os.rmdir(group)
