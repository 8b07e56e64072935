import pytest

from tests.llm.tiny import CORPUS, brute_force, histories, make_tokenizer, titles_array

__all__ = ["CORPUS", "brute_force", "histories", "make_tokenizer", "titles_array"]


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer


@pytest.fixture(scope="session")
def llm(tiny_llm):
    return tiny_llm
