"""Ray for the tests of jobs: how long one lives, and how to do without."""

import time
from collections.abc import Iterator

import pytest
import ray

from allmrec.core.storage import S3Config
from jobs.config import Config
from jobs.runtime.cluster import start_ray
from tests.jobs.in_process import jobs_in_process

STORE_MB = 400
RAY_LIVES_S = 240
_born = 0.0  # no later than Ray


@pytest.fixture(scope="module", autouse=True)
def young_ray(request: pytest.FixtureRequest, s3: S3Config) -> Iterator[None]:
    """The first job starts Ray, and modules share it for four minutes: after eight, Ray has lost a message.

    A module with a failed test takes its Ray with it. `s3` comes first, so that Ray's workers find its credentials.
    """
    global _born
    if not ray.is_initialized():
        _born = time.monotonic()
    failed = request.session.testsfailed
    yield
    if time.monotonic() - _born > RAY_LIVES_S or request.session.testsfailed > failed:
        ray.shutdown()


@pytest.fixture(scope="module")
def started_ray(young_ray: None) -> None:
    """For tests of what runs inside a job: a new Ray, whose object store is capped."""
    ray.shutdown()
    start_ray(Config(name="test", workers={"object_store_mb": STORE_MB}))


@pytest.fixture
def in_process(request: pytest.FixtureRequest) -> Iterator[None]:
    """Jobs run in this process: a worker takes seconds to start, and most tests are of what it does.

    Not those that are marked `on_ray`.
    """
    if request.node.get_closest_marker("on_ray"):
        yield
    else:
        with jobs_in_process():
            yield
