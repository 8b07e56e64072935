"""Thirty users of a dozen items, a tiny LLM in a folder, and a process group of one."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from allmrec.cf.teacher import Teacher, TeacherConfig, build_teacher
from allmrec.cf.training import ValidationCases
from allmrec.data.sequences import Sequences, offsets_of
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from benchmarks.process_group import group_of_one
from tests.llm.tiny import titles_array

NUM_ITEMS, NUM_USERS = 12, 30
TITLES = ["Moonfall", "Moonfall Chronicles", "The Last Garden", "Garden", "Deluxe Edition of the Last Garden", "II"]


@pytest.fixture(scope="session")
def builder(tiny_tokenizer) -> PromptBuilder:
    titles = Titles.tokenise(titles_array([*TITLES, *(title + " II" for title in TITLES)]), tiny_tokenizer, 24)
    return PromptBuilder(PromptConfig(max_history=4), tiny_tokenizer, titles, soft=True, max_tokens=480)


@pytest.fixture(scope="session")
def words(builder, tiny_tokenizer) -> PromptBuilder:
    """Of prompts without slots."""
    return PromptBuilder(builder.config, tiny_tokenizer, builder.titles, soft=False, max_tokens=480)


@pytest.fixture(scope="session")
def sequences() -> Sequences:
    """Training parts; the first user has no item, the second only one."""
    random = np.random.default_rng(0)
    lengths = np.concatenate([[0, 1], random.integers(2, 8, NUM_USERS)])
    items = np.concatenate([random.permutation(NUM_ITEMS)[:length] + 1 for length in lengths]).astype(np.int32)
    return Sequences(pa.array([f"user-{row}" for row in range(len(lengths))]), offsets_of(lengths), items)


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    torch.manual_seed(0)
    return build_teacher(TeacherConfig(dim=8), NUM_ITEMS).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def joint() -> torch.Tensor:
    e_NJ = torch.randn(NUM_ITEMS + 1, 6, generator=torch.Generator().manual_seed(0))
    e_NJ[0] = 0
    return e_NJ


@pytest.fixture(scope="session")
def llm_folder(tiny_llm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    tiny_llm.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A process group of one, for the module's tests."""
    os.environ["LOCAL_RANK"] = "0"
    with group_of_one(tmp_path_factory.mktemp("group")):
        yield
    del os.environ["LOCAL_RANK"]


@pytest.fixture(scope="module")
def cases(examples) -> ValidationCases:
    """A dozen users of the module's `examples`: the target first, then its negatives."""
    users = np.arange(12)
    candidates = examples.candidates(users, epoch=9)
    where = np.argmax(candidates == examples.targets[users, None], axis=1)
    candidates[users, where], candidates[:, 0] = candidates[:, 0], examples.targets[users]
    return ValidationCases(examples.histories(users), candidates)
