"""What tests of many folders share: stores, Spark, a tiny LLM, and a workspace up to its bundle."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # those who take none of it do not wait for torch
    from transformers import OPTForCausalLM, PreTrainedTokenizerFast

    from allmrec.core.storage import Storage
    from allmrec.model import ALLMRec
    from jobs.config import Config

for name, value in {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}.items():  # as `make test` has them
    os.environ.setdefault(name, value)

pytest_plugins = ["tests.s3_fixtures", "tests.spark_fixture"]

settings.register_profile("timeless", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("timeless")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    from tests.llm.tiny import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny_llm(tiny_tokenizer: "PreTrainedTokenizerFast") -> "OPTForCausalLM":
    """Random and frozen."""
    from tests.llm.tiny import make_llm

    return make_llm(tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_original(
    tmp_path_factory: pytest.TempPathFactory, tiny_llm: "OPTForCausalLM", tiny_tokenizer: "PreTrainedTokenizerFast"
) -> Path:
    """Root of a workspace up to its promoted bundle, made once a process; see `tiny_workspace`."""
    from jobs import bundle
    from tests.evaluation.tiny import tiny_config, write_tiny_workspace
    from tests.jobs.in_process import executed

    root = tmp_path_factory.mktemp("tiny")
    write_tiny_workspace(tiny_config(root), tiny_llm, tiny_tokenizer)
    executed(bundle.STEP, tiny_config(root))
    return root


@pytest.fixture(scope="session")
def tiny_bundle(tiny_original: Path) -> "tuple[Config, Storage, str]":
    """For those who only read: config, storage and version of the bundle that all share."""
    from allmrec.bundle.versions import latest_bundle
    from allmrec.core.storage import open_storage
    from tests.evaluation.tiny import tiny_config

    config = tiny_config(tiny_original)
    storage = open_storage(config.workspace_uri)
    return config, storage, latest_bundle(storage)


@pytest.fixture(scope="session")
def tiny_model(tiny_bundle: "tuple[Config, Storage, str]") -> "ALLMRec":
    from allmrec.bundle.loading import load_bundle
    from allmrec.model import ALLMRec

    config, storage, version = tiny_bundle
    return ALLMRec(load_bundle(storage, version), config.llm)


@pytest.fixture(scope="module")
def tiny_workspace(tiny_original: Path, tmp_path_factory: pytest.TempPathFactory) -> "tuple[Config, Storage]":
    """A module's own copy of a workspace up to its promoted bundle, with its config."""
    from allmrec.core.storage import open_storage
    from tests.evaluation.tiny import tiny_config

    root = tmp_path_factory.mktemp("workspace")
    shutil.copytree(tiny_original, root, dirs_exist_ok=True)
    # The models stay where they were, as their folders' names are in what the bundle was made of.
    original = tiny_config(tiny_original)
    config = tiny_config(root).model_copy(update={"llm": original.llm, "text": original.text})
    return config, open_storage(config.workspace_uri)
