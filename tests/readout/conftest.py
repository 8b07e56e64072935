"""The users, items and LLM of Stage-2's tests, with LLM-SRec's prompts."""

import pytest

from allmrec.llm.prompt import PromptConfig
from allmrec.readout.examples import ReadoutExamples
from allmrec.readout.network import ReadoutConfig
from allmrec.readout.prompts import ReadoutPrompts
from tests.projection.conftest import alone, builder, cases, joint, llm_folder, sequences, teacher  # noqa: F401

CONFIG = ReadoutConfig(
    dim=16, hidden=24, batch_size=7, tokens_per_pass=2000, epochs=2, learning_rate=1e-2, checkpoint_every_steps=3
)
HOW = ("replicated", "replicated, checkpointed", "sharded", "sharded, checkpointed")  # two workers train


@pytest.fixture(scope="session")
def prompts(builder, tiny_tokenizer) -> ReadoutPrompts:  # noqa: F811
    return ReadoutPrompts(PromptConfig(max_history=4), tiny_tokenizer, builder.titles, positions=480)


@pytest.fixture(scope="session")
def examples(sequences, prompts) -> ReadoutExamples:  # noqa: F811
    return ReadoutExamples(CONFIG, sequences, prompts, seed=0)
