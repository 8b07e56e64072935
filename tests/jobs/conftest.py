from collections.abc import Iterator

import pytest
import ray
import ray.data

from allmrec.core.storage import S3Config
from jobs.config import Config
from jobs.runtime.ray_train import start_ray
from tests.jobs.in_process import from_arrow, numbers

STORE_MB = 400


@pytest.fixture(scope="module", autouse=True)
def own_ray(s3: S3Config) -> Iterator[None]:
    """Each module has a Ray of its own, which its first job starts: late in a long life Ray has lost messages.

    `s3` comes first, so that Ray's workers find its credentials.
    """
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def started_ray(own_ray: None) -> None:
    """For tests of what runs inside a job."""
    start_ray(Config(name="test", workers={"object_store_mb": STORE_MB}))


@pytest.fixture
def in_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs on Ray Data run in this process: a worker takes seconds to start, and most tests are of what it does.

    Not those that are marked `on_ray`.
    """
    if request.node.get_closest_marker("on_ray"):
        return
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.data, "range", numbers)
    monkeypatch.setattr(ray.data, "from_arrow", from_arrow)
