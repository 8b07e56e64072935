from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def same_torch() -> Iterator[None]:
    """Benchmarks set their own threads, and round the smallest numbers to zero: in a process of their own, else.

    Two test processes with two threads each on two cores are a hundred times slower.
    """
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
