"""What a worker has imported. Itself it imports nothing of ours."""

import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

OF_THE_DRIVER = ("torch", "jobs", "ray.data")


def loaded() -> list[str]:
    return [name for name in OF_THE_DRIVER if name in sys.modules]


def tabled(batch: dict[str, Any]) -> Iterator[pa.Table]:
    yield pa.table({"loaded": pa.array(loaded(), pa.string())})
