"""Test cases of the tiny workspace's first shard."""

import pytest

from allmrec.core.artifacts import read_table
from allmrec.data.cases import Cases
from allmrec.data.sequences import Sequences


@pytest.fixture
def cases(tiny_bundle) -> Cases:
    _, storage, _ = tiny_bundle
    table, sequences = read_table(storage.at("evaluation_cases"), [0]), Sequences.read(storage.at("sequences"), [0])
    return Cases.select(table, sequences, "test", "random")
