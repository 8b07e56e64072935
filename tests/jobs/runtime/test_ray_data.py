import gc
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.exceptions import ActorDiedError, RayError, WorkerCrashedError

from allmrec.core.errors import StoreUnavailable, WorkersLost, exit_code
from allmrec.core.shard_tasks import Report, ShardTask, gather
from jobs.config import WorkersConfig
from jobs.runtime import ray_data
from jobs.runtime.console import Console
from jobs.runtime.ray_data import iter_reports, iter_results, map_actors, map_tasks, on_worker, stream, with_timeout

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("started_ray")]


def square(batch):
    assert len(batch["id"]) == 1
    for number in batch["id"]:
        yield pa.table({"square": [number**2]})


@pytest.mark.parametrize("run", [map_tasks, stream])
def test_every_number_once(run, monkeypatch):
    monkeypatch.setattr(ray_data, "_SUBMITTED", 3)
    assert sorted(pa.concat_tables(iter_results(run(7, square))).column("square").to_pylist()) == [
        number**2 for number in range(7)
    ]


def test_a_task_whose_worker_dies_is_started_again(tmp_path):
    def dies_once(batch):
        if batch["id"] == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield pa.table({"id": batch["id"]})

    assert sorted(pa.concat_tables(iter_results(map_tasks(3, dies_once))).column("id").to_pylist()) == [0, 1, 2]


@pytest.mark.parametrize("lost", [0, 1])
def test_what_is_left_when_one_fails_is_cancelled(lost, tmp_path, monkeypatch):
    """An error ends the tasks that are left, also those for which Ray loses a request to cancel them."""
    cancel, requests = ray.cancel, Counter[ray.ObjectRef]()

    def lossy(task, **options):
        requests[task] += 1
        if requests[task] > lost:
            cancel(task, **options)

    def fails(batch):
        (tmp_path / str(batch["id"][0])).touch()
        if batch["id"] == 0:
            raise ValueError("out of luck")
        time.sleep(600)
        yield pa.table({})

    monkeypatch.setattr(ray, "cancel", lossy)
    with pytest.raises(ValueError, match="out of luck"):
        list(iter_results(map_tasks(100, fails)))
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "tasks hold their CPUs"
        time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) < 100


LOADED = """
from jobs.config import Config
from jobs.runtime.cluster import start_ray
from jobs.runtime.ray_data import iter_results, map_tasks, on_worker
from tests.jobs.runtime.loaded import loaded, tabled

start_ray(Config(name="test"))
assert on_worker(loaded) == []
assert [table.to_pylist() for table in iter_results(map_tasks(1, tabled))] == [[]]
"""


def test_workers_import_what_they_run_and_not_what_the_driver_has():
    """Such as torch, which takes seconds."""
    subprocess.run([sys.executable, "-c", LOADED], check=True, cwd=ROOT)


def test_ray_on_one_machine_has_no_process_that_nothing_asks():
    """As of a dashboard, for which `init` waits."""
    assert {*ray._private.worker._global_node.all_processes} == {"gcs_server", "raylet"}


class Count(ShardTask):
    def process(self, shard):
        files = {f"file-{shard}": {"sha256": "ab", "size": shard}}
        return Report(counts=Counter(squares=shard**2), files=files, item_counts={"seen": np.full(3, shard)})


def test_reports_come_back_as_they_were_and_add_up():
    with Console(log_json=True).progress("count", 5) as bar:
        by_shard, total = gather(iter_reports(map_tasks(5, Count()), bar))
        assert bar.done == 5
    assert [report.counts["squares"] for report in by_shard] == [0, 1, 4, 9, 16]
    assert total.counts == {"squares": 30} and total.item_counts["seen"].tolist() == [10, 10, 10]
    assert total.files["file-3"] == {"sha256": "ab", "size": 3}
    with Console(log_json=True).progress("count", 2) as bar:
        by_worker, _ = gather(iter_reports(map_actors([3, 1], Count, (), WorkersConfig(num_workers=1)), bar))
    assert [report.shard for report in by_worker] == [1, 3]


def test_a_function_on_a_worker():
    assert on_worker(os.getpid) != os.getpid()
    assert on_worker(sorted, [2, 1]) == [1, 2]


@pytest.mark.parametrize(("kind", "code"), [(ValueError, 2), (StoreUnavailable, 1)])
def test_a_users_error_comes_from_a_worker_as_it_was_raised(kind, code):
    def refuse(what):
        raise kind(f"cannot read {what}")

    with pytest.raises(ValueError, match=r"^cannot read items$") as error:
        on_worker(refuse, "items")
    assert not isinstance(error.value, RayError) and exit_code(error.value) == code


@pytest.mark.parametrize(("kind", "code"), [(ValueError, 2), (StoreUnavailable, 1)])
def test_a_users_error_comes_out_as_it_was_raised(kind, code):
    def refuse(batch):
        raise kind("interactions: cannot read log.json.gz")

    with pytest.raises(ValueError) as error:
        list(iter_results(map_tasks(1, refuse)))
    assert str(error.value) == "interactions: cannot read log.json.gz"
    assert not isinstance(error.value, RayError) and exit_code(error.value) == code


@pytest.mark.parametrize("death", [WorkerCrashedError(), ActorDiedError()])
def test_dead_workers_are_told_in_one_line(death):
    class Dying:
        context = SimpleNamespace()

        def iter_batches(self, **_):
            raise death

    with pytest.raises(WorkersLost, match="run again to resume") as error:
        list(iter_results(Dying()))
    assert exit_code(error.value) == 1 and "\n" not in str(error.value)


class Refusing:
    def __call__(self, batch):
        raise ValueError("the LLM gave NaN")


def test_workers_that_failed_give_their_cpus_back():
    """While the error is still held, and without waiting for the garbage collector's turn."""
    gc.disable()
    try:
        with pytest.raises(ValueError, match="the LLM gave NaN") as error:
            list(
                with_timeout(
                    iter_results(map_actors(range(2), Refusing, (), WorkersConfig(num_workers=2))), None, 60, lambda: ""
                )
            )
        deadline = time.monotonic() + 20
        while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
            assert time.monotonic() < deadline, "the workers hold their CPUs"
            time.sleep(0.1)
    finally:
        gc.enable()
    assert error


class Large:
    def __init__(self, argument: np.ndarray):
        self.size = argument.size

    def __call__(self, batch):
        yield pa.table({"size": [self.size]})


def test_rays_own_notices_do_not_reach_a_person(capfd: pytest.CaptureFixture[str]) -> None:
    """As of an argument that goes through the object store."""
    dataset = map_actors(range(1), Large, (np.zeros(2**20),), WorkersConfig(num_workers=1))
    assert [table.to_pylist() for table in iter_results(dataset)] == [[{"size": 2**20}]]
    assert capfd.readouterr() == ("", "")


def test_any_other_error_keeps_its_story():
    def fail(batch):
        raise RuntimeError("out of luck")

    with pytest.raises(RayError, match="out of luck"):
        list(iter_results(map_tasks(1, fail)))


def slowly(*waits: float) -> Iterator[int]:
    for number, seconds in enumerate(waits):
        time.sleep(seconds)
        yield number


def test_what_comes_in_time_passes_and_errors_come_through():
    assert list(with_timeout(slowly(0, 0.1, 0), time.monotonic() + 60, 60, lambda: "")) == [0, 1, 2]
    assert list(with_timeout(slowly(0, 0), None, None, lambda: "")) == [0, 1]
    with pytest.raises(ZeroDivisionError):
        list(with_timeout((1 // number for number in (1, 0)), None, 60, lambda: ""))


def test_whatever_ends_the_results_ends_the_wait() -> None:
    def interrupted() -> Iterator[int]:
        yield 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(with_timeout(interrupted(), None, 5, lambda: ""))


def test_a_result_that_does_not_come_ends_the_wait_with_a_diagnosis():
    results = with_timeout(slowly(0, 30), None, 0.2, lambda: "shard 7 is unfinished")
    assert next(results) == 0
    with pytest.raises(ValueError, match=r"no result for 0\.2 s and shard 7 is unfinished.*nightly\.stall_timeout_s"):
        next(results)


def test_the_deadline_is_for_all_together():
    with pytest.raises(ValueError, match=r"nightly\.timeout_s is over"):
        list(with_timeout(slowly(*[0.1] * 30), time.monotonic() + 0.3, 60, lambda: "none"))
