import pyarrow as pa
import pytest
import ray
from ray.exceptions import RayError

from jobs.config import Config
from jobs.datasets import over, tables
from jobs.workers import start_ray

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", autouse=True)
def cluster():
    start_ray(Config(name="test"))
    yield
    ray.shutdown()


def square(batch):
    assert len(batch["id"]) == 1
    for number in batch["id"]:
        yield pa.table({"square": [number**2]})


def test_every_number_once():
    assert sorted(pa.concat_tables(tables(over(7, square))).column("square").to_pylist()) == [
        number**2 for number in range(7)
    ]


def test_a_users_error_comes_out_as_it_was_raised():
    def refuse(batch):
        raise ValueError("interactions: cannot read log.json.gz")

    with pytest.raises(ValueError) as error:
        list(tables(over(1, refuse)))
    assert str(error.value) == "interactions: cannot read log.json.gz"
    assert not isinstance(error.value, RayError)


def test_any_other_error_keeps_its_story():
    def fail(batch):
        raise RuntimeError("out of luck")

    with pytest.raises(RayError, match="out of luck"):
        list(tables(over(1, fail)))
