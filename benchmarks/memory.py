"""Peak memory of a process with all it starts, sampled while it runs (Linux)."""

import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

INTERVAL_S = 0.2


@dataclass
class Memory:
    """MiB, summed over processes; a page that several share is counted once (proportional set size).

    Shared memory is Ray's object store. The peaks of the two parts need not come at once.
    """

    total: float = 0
    shared: float = 0
    private: float = 0

    def most(self, other: "Memory") -> "Memory":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Memory(*(max(pair) for pair in pairs))


def peak(process: Popen) -> Memory:
    """Wait for the process to end; the most that it and its descendants held."""
    most = Memory()
    while process.poll() is None:
        most = most.most(held(process.pid))
        time.sleep(INTERVAL_S)
    return most


def held(root: int) -> Memory:
    """By a process and its descendants, now."""
    total = shared = 0
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # ended since it was listed
            continue
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        total, shared = total + kib.get("Pss", 0), shared + kib.get("Pss_Shmem", 0)
    return Memory(total / 1024, shared / 1024, (total - shared) / 1024)


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
