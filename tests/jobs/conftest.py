from collections.abc import Iterator

import pytest
import ray

from allmrec.core.storage import S3Config
from jobs.config import Config
from jobs.runtime.ray_train import start_ray

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
