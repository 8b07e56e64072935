"""A stand-in for the LLM: a tiny OPT with its own tokenizer, for machines that hold no pretrained one.

It goes through the same code as the real one: a folder in the Hugging Face layout, loaded by name, frozen, steered by
soft tokens. It knows how titles are spelt, the template's wording and one skill — to recommend the candidate whose
soft token agrees with the user's and the history's — and no interaction. Its figures are never the paper's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from allmrec.core.settings import Section
from allmrec.demo.llm_circuits import (
    EMBEDDED,
    FFN,
    GAIN,
    HIDDEN,
    NUM_HEADS,
    NUM_LAYERS,
    SOFT,
    Wording,
    write_circuits,
)
from allmrec.demo.llm_tasks import TaskMaker
from allmrec.llm.prompt import ABOUT_USER, NOTHING, PromptBuilder, PromptConfig, Titles, recommendation
from allmrec.llm.ranking import Ranker

ANSWER_ROOM = 32  # positions kept free behind a prompt


class StandinLLMConfig(Section):
    """Size of the tokenizer, and what a prompt may hold."""

    vocab_size: int = Field(2000, ge=300)
    max_positions: int = Field(1024, ge=64)


def train_tokenizer(titles: pa.Array, wordings: Sequence[PromptConfig], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of titles and of the template's wordings; it takes any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    templates = [
        ABOUT_USER + words.opening + NOTHING + words.question + words.answer for words in map(recommendation, wordings)
    ]
    texts = [" " + title for title in titles.to_pylist()[1:]]
    # Often enough that every word of the template becomes one token.
    bpe.train_from_iterator([*texts, *templates * (len(texts) + 10)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@dataclass
class Standin:
    """A stand-in, and the prompts that it reads."""

    llm: Any
    tokenizer: Any
    prompts: PromptBuilder
    stats: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def before(cls, titles: pa.Array, prompt: PromptConfig, llm: Any, tokenizer: Any) -> "Standin":
        """A stand-in that reads prompts about n + 1 titles of a `Catalogue`."""
        tokens = Titles.tokenise(titles, tokenizer, prompt.max_title_tokens)
        room = llm.config.max_position_embeddings - ANSWER_ROOM
        return cls(llm, tokenizer, PromptBuilder(prompt, tokenizer, tokens, True, room))

    def tasks(self, seed: int) -> TaskMaker:
        return TaskMaker(self.prompts, torch.eye(EMBEDDED)[SOFT] / GAIN, seed)

    def save(self, folder: str | Path) -> None:
        """In the Hugging Face layout, safetensors."""
        self.llm.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)


def build(titles: pa.Array, wordings: Sequence[PromptConfig], config: StandinLLMConfig, seed: int) -> Standin:
    """A frozen stand-in, examined; the same for the same titles, wordings, config and seed.

    Args:
        titles: n + 1 strings of a `Catalogue`, the first one is padding.
        wordings: that it is to understand; it is examined with the first.
    """
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = train_tokenizer(titles, wordings, config.vocab_size)
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.manual_seed(seed)
        llm = OPTForCausalLM(
            OPTConfig(
                vocab_size=len(tokenizer),
                hidden_size=HIDDEN,
                word_embed_proj_dim=EMBEDDED,
                ffn_dim=FFN,
                num_hidden_layers=NUM_LAYERS,
                num_attention_heads=NUM_HEADS,
                max_position_embeddings=config.max_positions,
                dropout=0.0,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    standin = Standin.before(titles, wordings[0], llm.eval().requires_grad_(False), tokenizer)
    tokens = standin.prompts.titles
    firsts = tokens.tokens[tokens.offsets[1:-1][tokens.lengths[1:] > 0]]
    counts = np.bincount(firsts, minlength=len(tokenizer))
    frequent = torch.from_numpy(np.argsort(-counts, kind="stable"))
    generator = torch.Generator().manual_seed(seed)
    write_circuits(llm, _wording(tokenizer, wordings), frequent, torch.from_numpy(counts > 0), generator)
    standin.stats |= {"parameters": sum(p.numel() for p in llm.parameters()), "vocabulary": len(tokenizer)}
    standin.stats |= {name: round(value, 4) for name, value in examine(standin, seed).items()}
    return standin


def _wording(tokenizer: Any, wordings: Sequence[PromptConfig]) -> Wording:
    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    templates = [recommendation(prompt) for prompt in wordings]
    question, answer = templates[0].question, tokens(templates[0].answer)
    return Wording(
        comma=tokens(question)[-1],
        intro=sorted({tokens(words.opening)[-1] for words in templates}),
        lead=tokens(question)[-2],
        recommend=tokens(question.partition(".")[2])[0],
        ending=answer[-2],
        end=answer[-1],
        eos=tokenizer.eos_token_id,
        silent=(tokenizer.bos_token_id, tokenizer.pad_token_id),
    )


def examine(
    standin: Standin, seed: int, prompts: int = 256, num_candidates: int = 20, alike: int = 0
) -> dict[str, float]:
    """How well the candidates are told apart by their slots, on vectors and prompts never met.

    Args:
        alike: candidates of each prompt whose titles begin like another's; beyond them as chance has it.

    Returns:
        cross_entropy of the true distribution under the LLM's ranking, its `bound` (that distribution's entropy),
        `uniform`, the `correlation` of log P with the true scores within prompts, and `agreement`: how often the
        best candidate is the truly best one.
    """
    task = standin.tasks(seed).draw(prompts, num_candidates, alike)
    ranker = Ranker(standin.llm, standin.prompts, tokens_per_batch=8192)
    log_p = ranker.log_probabilities(task.history, task.candidates, task.soft).astype(np.float64)
    shown, p = task.candidates > 0, task.probabilities_BC
    count = shown.sum(axis=1, keepdims=True)
    ours, true = np.where(shown, log_p, 0), np.where(shown, task.scores_BC, 0)
    ours, true = (np.where(shown, x - x.sum(axis=1, keepdims=True) / count, 0) for x in (ours, true))
    return {
        "cross_entropy": float(-(p * np.where(shown, log_p, 0)).sum(axis=1).mean()),
        "bound": float(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=1).mean()),
        "uniform": float(np.log(count).mean()),
        "correlation": float((ours * true).sum() / np.sqrt((ours**2).sum() * (true**2).sum())),
        "agreement": float((log_p.argmax(axis=1) == p.argmax(axis=1)).mean()),
    }
