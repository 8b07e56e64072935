"""Leases: a live holder keeps its run, a dead one loses it to exactly one successor."""

import subprocess
import sys
import time
from datetime import date

import pytest

from allmrec.core.storage import Storage, open_storage
from allmrec.publishing.lease import Lease, RunHeld, hold_lease
from tests.s3_fixtures import together

DAY = date(2026, 3, 1)


def test_a_live_holder_is_named_and_keeps_its_run(storage: Storage) -> None:
    with hold_lease(storage, DAY, lease_s=1.2) as lease:
        with (
            pytest.raises(RunHeld, match=r"is being made by process \d+ on .+ since 20"),
            hold_lease(storage, DAY, 1.2),
        ):
            pytest.fail("two hold one run")
        lease.check()


def test_another_date_is_another_run(storage: Storage) -> None:
    with hold_lease(storage, DAY, 60), hold_lease(storage, date(2026, 3, 2), 60) as other:
        other.check()


def test_a_released_lease_is_free_at_once(storage: Storage) -> None:
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the run failed"), hold_lease(storage, DAY, 600):
        raise RuntimeError("the run failed")
    with hold_lease(storage, DAY, 600, waiting=lambda _: pytest.fail("nothing to wait for")) as lease:
        lease.check()
    assert time.monotonic() - began < 60


def test_of_those_that_start_together_one_holds(storage: Storage) -> None:
    def start() -> int:
        with hold_lease(storage, DAY, lease_s=2) as lease:
            time.sleep(2)  # the others must have looked by then
            lease.check()
            return lease.number

    results = together([start] * 4)
    assert results.count(1) == 1 and sum(isinstance(result, RunHeld) for result in results) == 3


def test_a_dead_holder_is_replaced_by_one_and_learns_that_it_was(storage: Storage) -> None:
    silent = _silent_holder(storage)
    notices: list[str] = []

    def take() -> int:
        with hold_lease(storage, DAY, lease_s=1.5, waiting=notices.append) as lease:
            time.sleep(1.5)
            return lease.number

    results = together([take] * 3)
    assert results.count(2) == 1 and sum(isinstance(result, RunHeld) for result in results) == 2
    assert "watching 1.5 s whether it is alive" in notices[0]
    with pytest.raises(RunHeld, match="taken over by process"):
        silent.check()


def test_a_killed_process_is_replaced_after_the_lease(tmp_path) -> None:
    program = (
        "import sys, time; from datetime import date; from allmrec.core.storage import open_storage\n"
        "from allmrec.publishing.lease import hold_lease\n"
        f"with hold_lease(open_storage(sys.argv[1]), date({DAY.year}, {DAY.month}, {DAY.day}), 1.2):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    storage = open_storage(str(tmp_path))
    with pytest.raises(RunHeld, match=f"process {holder.pid}"), hold_lease(storage, DAY, 1.2):
        pass
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with hold_lease(storage, DAY, 1.2):
        assert time.monotonic() - began >= 1.2


def _silent_holder(storage: Storage) -> Lease:
    """Holds lease 1 and does not beat: its process is stopped, or cut off from the store."""
    leases = storage.at(f"_runs/run_date={DAY}/lease")
    leases.create("00000001.json", b'{"host": "elsewhere", "pid": 1, "started": "2026-03-01T00:00:00+00:00"}')
    lease = Lease(leases, 1, lease_s=1e6)
    lease.stop()
    return lease
