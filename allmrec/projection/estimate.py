"""How long Stage-2's prompts are, from a sample of users, and what a CPU does a second: for a plan, before anything is
loaded."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from allmrec.data.sequences import Sequences
from allmrec.llm.loading import LLMConfig, load_tokenizer
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.projection.examples import Examples
from allmrec.projection.settings import Stage2Config

TITLES, _USERS = 2000, 256  # of the sample
_TOKENS = 512  # multiplied at once


def tokens_per_prompt(
    llm: LLMConfig,
    prompt: PromptConfig,
    training: Stage2Config,
    positions: int,
    sequences: Sequences,
    titles: pa.Array,
    soft: bool = True,
) -> float:
    """The mean length of a prompt with its answer, of some of the users with some of the titles.

    Args:
        sequences: training parts of users' histories.
        titles: of `some_titles`, about TITLES of them.
        soft: with slots; or else of text alone.
    """
    tokenizer: Any = load_tokenizer(llm)
    sample = Titles.tokenise(titles, tokenizer, prompt.max_title_tokens)
    builder = PromptBuilder(prompt, tokenizer, sample, soft, max_tokens=positions)
    users = sequences.take(np.flatnonzero(sequences.lengths >= 2)[:_USERS])
    stand_ins = Sequences(users.user_ids, users.offsets, (users.items % (len(titles) - 1) + 1).astype(np.int32))
    examples = Examples(stand_ins, builder, training.num_candidates, seed=0, targets=training.targets)
    everyone = np.arange(len(examples))
    tokens = examples.prompts(everyone, epoch=0).lengths.sum() + examples.target_tokens(everyone) - len(examples)
    return float(tokens) / len(examples)


def matmul_rate(token_dim: int, dtype: torch.dtype, threads: float) -> float:
    """Floating point operations a second of this host's CPUs in the products of a feed-forward part, the best of five.

    An LLM's layers reach some part of it: attention, norms and padding are on top.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(threads)))
    rows_TH, weight_HF = torch.ones(_TOKENS, token_dim, dtype=dtype), torch.ones(token_dim, 4 * token_dim, dtype=dtype)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        rows_TH @ weight_HF
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(before)
    return 2 * _TOKENS * weight_HF.numel() / min(seconds)
