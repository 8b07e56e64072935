"""The tiny run, and a scorer of its bundle."""

import pytest

from allmrec.bundle import build_bundle, load_bundle
from allmrec.model import ALLMRec
from jobs.runtime.step import resolved
from tests.evaluation.tiny import tiny_config, write_tiny_run
from tests.llm.conftest import llm, tokenizer  # noqa: F401 - fixtures

SECTIONS = ("data", "text", "teacher", "alignment", "llm", "prompt", "projection", "bundle")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, llm, tokenizer):  # noqa: F811
    """(config, storage of the run, version of its bundle)"""
    config = tiny_config(tmp_path_factory.mktemp("tiny"))
    run = write_tiny_run(config, llm, tokenizer)
    return config, run, build_bundle(run, resolved(config, SECTIONS))


@pytest.fixture(scope="session")
def scorer(tiny):
    config, run, version = tiny
    return ALLMRec(load_bundle(run, version), config.llm)
