import pytest

from allmrec.storage import S3Config
from jobs.config import Config
from jobs.workers import start_ray

STORE_MB = 400


@pytest.fixture(scope="module", autouse=True)
def one_ray(s3: S3Config) -> None:
    """Ray, which the first module starts and all of a process share: starting it takes longer than most tests.

    `s3` comes first, so that Ray's workers find its credentials.
    """
    start_ray(Config(name="test", storage=s3, workers={"object_store_mb": STORE_MB}))
