from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def same_threads() -> Iterator[None]:
    """Benchmarks set their own. Two test processes with two threads each on two cores are a hundred times slower."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
