"""One run of a date at a time: leases numbered by put-if-absent, kept alive by a beat.

A newcomer watches the holder's beat for `lease_s` of its own clock: one that moves belongs to a live run, one that
stops for a dead one, whose successor takes the next number. No two machines' clocks are compared. A lease only saves
double work: what makes publishing safe is in `allmrec.publishing.run`. A released lease removes those before it, so
that a date holds the files of one.
"""

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Any

from allmrec.core.errors import JobError
from allmrec.core.storage import Storage

log = logging.getLogger(__name__)


class RunHeld(JobError):
    """Another process has this run; the message says which, and since when."""

    exit_code = 4


class Lease:
    """The right to work on a run, until another process has taken the next number."""

    def __init__(self, storage: Storage, number: int, lease_s: float):
        self.storage, self.number, self.lease_s = storage, number, lease_s
        self._record = _find(storage, f"{number:08d}.json")  # names this process; no other lease has the same
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RunHeld when this process was taken for dead and another one has the run now."""
        newest = _newest(self.storage)
        if newest > self.number:
            raise RunHeld(f"this run was taken over {_holder(self.storage, newest)}; that process continues it")
        if not self._is_ours():
            raise RunHeld("this run was taken over, and its date has been deleted since")

    def stop(self) -> None:
        """Stop beating, as a dead process does."""
        self._done.set()
        self._thread.join()

    def release(self) -> None:
        """Let the next one have the run at once."""
        if self._done.is_set():  # stopped, or erased
            return
        self.stop()
        if self._is_ours():
            self.storage.write(f"{self.number:08d}.released", b"")
            self._delete(lambda number: number < self.number)

    def erase(self) -> None:
        """Release the lease of a date that is deleted, and leave no trace of it."""
        self.stop()
        self._delete(lambda number: number <= self.number)

    def _is_ours(self) -> bool:
        return _find(self.storage, f"{self.number:08d}.json") == self._record

    def _delete(self, outdated: Callable[[int], bool]) -> None:
        for entry in list(self.storage.list()):
            if outdated(int(entry.key.partition(".")[0])):
                self.storage.delete(entry.key)

    def _beat(self) -> None:
        for count in range(1 << 62):
            try:
                self.storage.write(f"{self.number:08d}.beat", str(count).encode())
            except Exception as error:  # the next beat may get through
                log.warning("the lease could not be renewed: %s", error)
            if self._done.wait(self.lease_s / 6):
                return


@contextmanager
def hold_lease(
    storage: Storage, run_date: date, lease_s: float, waiting: Callable[[str], None] = log.info
) -> Iterator[Lease]:
    """Hold the lease of a date's run.

    Args:
        storage: where recommendations are published.
        lease_s: seconds without a beat after which a holder counts as dead; a takeover waits that long.
        waiting: told, before the wait, whose beat is watched.

    Raises:
        RunHeld: a live process has the run.
    """
    with hold(storage.at(f"_runs/run_date={run_date}/lease"), lease_s, waiting) as lease:
        yield lease


@contextmanager
def hold(leases: Storage, lease_s: float, waiting: Callable[[str], None] = log.info) -> Iterator[Lease]:
    """As `hold_lease`, of whatever has its leases in that folder."""
    lease = Lease(leases, _take(leases, lease_s, waiting), lease_s)
    try:
        yield lease
    finally:
        lease.release()


def _take(leases: Storage, lease_s: float, waiting: Callable[[str], None]) -> int:
    me = {"host": socket.gethostname(), "pid": os.getpid(), "owner": secrets.token_hex(8)}
    while True:
        newest = _newest(leases)
        if newest:
            _outlive(leases, newest, lease_s, waiting)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        if leases.create(f"{newest + 1:08d}.json", json.dumps({**me, "started": started}).encode()):
            return newest + 1


def _outlive(leases: Storage, number: int, lease_s: float, waiting: Callable[[str], None]) -> None:
    """Return when the lease is released or its holder dead; raise RunHeld when it beats."""
    beat = _beat_of(leases, number)
    deadline = time.monotonic() + lease_s
    told = False
    while leases.exists(f"{number:08d}.json") and not leases.exists(f"{number:08d}.released"):
        if _beat_of(leases, number) != beat:
            raise RunHeld(f"this run is being made {_holder(leases, number)}; wait for it, or stop it first")
        if time.monotonic() > deadline:
            return
        if not told:
            waiting(f"a run was begun {_holder(leases, number)}; watching {lease_s:g} s whether it is alive")
            told = True
        time.sleep(lease_s / 20)


def _newest(leases: Storage) -> int:
    """The highest lease's number; 0 when there is none."""
    return max(
        (int(entry.key.removesuffix(".json")) for entry in leases.list() if entry.key.endswith(".json")), default=0
    )


def _beat_of(leases: Storage, number: int) -> bytes | None:
    return _find(leases, f"{number:08d}.beat")


def _find(leases: Storage, key: str) -> bytes | None:
    try:
        return leases.read(key)
    except FileNotFoundError:
        return None


def _holder(leases: Storage, number: int) -> str:
    record = _find(leases, f"{number:08d}.json")
    if record is None:
        return "by a process that has just ended"
    holder: dict[str, Any] = json.loads(record)
    return f"by process {holder['pid']} on {holder['host']} since {holder['started']}"
