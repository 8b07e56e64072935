"""A stand-in for the LLM: a tiny OPT with its own tokenizer, for machines that hold no pretrained one.

It goes through the same code as the real one: a folder in the Hugging Face layout, loaded by name, frozen, steered by
soft tokens. It knows a catalogue's titles, the template's wording and one skill — to recommend the candidate whose
soft token agrees with the user's and the history's — and no interaction. Its figures are never the paper's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch.nn import functional

from allmrec.config import Section
from allmrec.llm.batches import fill_slots
from allmrec.llm.loading import hidden_states, vocabulary_logits
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.llm.ranking import Ranker
from allmrec.llm.standin_circuits import (
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
from allmrec.llm.standin_tasks import Lesson, Task, TaskMaker, lesson

# B prompts, C candidates, T tokens, H token dimension, A answer tokens, E edges, M branching nodes

ANSWER_ROOM = 32  # positions kept free behind a prompt


class StandinLLMConfig(Section):
    """Size of the tokenizer and length of the pretraining."""

    vocab_size: int = Field(2000, ge=300)
    max_positions: int = Field(1024, ge=64)
    num_candidates: int = Field(20, ge=2)  # most that a prompt of the pretraining shows
    steps: int = Field(120, ge=0)
    batch_size: int = Field(16, ge=1)  # prompts
    learning_rate: float = Field(3e-4, gt=0)
    title_weight: float = Field(0.5, ge=0)  # of the whole title's likelihood, beside the choice among candidates
    plain_fraction: float = Field(0.05, ge=0, le=1)  # prompts without slots
    noise: float = Field(0.04, ge=0)  # what soft tokens may hold beside their message, standard deviation


def train_tokenizer(titles: pa.Array, prompt: PromptConfig, vocab_size: int) -> Any:
    """A byte-level BPE tokenizer of the catalogue's titles and the template's wording; it takes any text."""
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
    wording = (
        f" is a user representation. This user has {prompt.verb_past} nothing in the past. Recommend a {prompt.noun}"
        f" for this user to {prompt.verb} next from the following set of {prompt.noun} titles,."
        " The recommendation is"
    )
    texts = [" " + title for title in titles.to_pylist()[1:]]
    # Often enough that every word of the template becomes one token.
    bpe.train_from_iterator([*texts, *[wording] * (len(texts) + 10)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@dataclass
class Standin:
    """A stand-in in the making: model, tokenizer and the tasks that it learns from."""

    llm: Any
    tokenizer: Any
    matching: PromptBuilder
    plain: PromptBuilder
    facts: dict[str, Any] = field(default_factory=dict)

    def tasks(self, seed: int, noise: float = 0.0) -> TaskMaker:
        return TaskMaker(self.matching, self.plain, torch.eye(EMBEDDED)[SOFT], GAIN, noise, seed)

    def save(self, folder: str | Path) -> None:
        """In the Hugging Face layout, safetensors."""
        self.llm.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)


def construct(titles: pa.Array, prompt: PromptConfig, config: StandinLLMConfig, seed: int) -> Standin:
    """Tokenizer and circuits, before any training.

    Args:
        titles: n + 1 strings of a `Catalogue`, the first one is padding.
    """
    from transformers import OPTConfig, OPTForCausalLM

    tokenizer = train_tokenizer(titles, prompt, config.vocab_size)
    tokens = Titles.tokenise(titles, tokenizer, prompt.max_title_tokens)
    room = config.max_positions - ANSWER_ROOM
    matching, plain = (PromptBuilder(prompt, tokenizer, tokens, soft, room) for soft in (True, False))
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
    firsts = tokens.tokens[tokens.offsets[1:-1][tokens.lengths[1:] > 0]]
    frequent = np.argsort(-np.bincount(firsts, minlength=len(tokenizer)), kind="stable")
    write_circuits(llm, _wording(tokenizer, prompt), torch.from_numpy(frequent), torch.Generator().manual_seed(seed))
    return Standin(llm, tokenizer, matching, plain)


def _wording(tokenizer: Any, prompt: PromptConfig) -> Wording:
    def last(text: str, back: int = 1) -> int:
        return tokenizer(text, add_special_tokens=False)["input_ids"][-back]

    return Wording(
        comma=last(","),
        intro=last(f" This user has {prompt.verb_past}"),
        lead=last(" titles"),
        recommend=last(" Recommend"),
        ending=last(" The recommendation is", 2),
        end=last(" The recommendation is"),
        silent=(tokenizer.bos_token_id, tokenizer.pad_token_id),
    )


def pretrain(
    standin: Standin, config: StandinLLMConfig, seed: int, advance: Callable[..., None] = lambda **numbers: None
) -> None:
    """Polish the circuits on synthetic tasks; `advance(loss=...)` is called after every step."""
    llm, started = standin.llm.train(), time.monotonic()
    tasks, random = standin.tasks(seed + 1, config.noise), np.random.default_rng(seed + 2)
    for passage in (llm.model.decoder.project_in, llm.model.decoder.project_out):
        passage.requires_grad_(False)
    hooks = _only_what_is_wired(llm)
    learnt = [parameter for parameter in llm.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(learnt, lr=config.learning_rate, betas=(0.9, 0.98))
    warmup = max(1, config.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warmup, max(0.02, 1 - (step - warmup) / max(1, config.steps - warmup)))
    )
    for _ in range(config.steps):
        soft = bool(random.random() >= config.plain_fraction)
        # Prompts of a batch are alike in size, so that little is padding.
        num_candidates = (
            int(random.integers(2, config.num_candidates + 1)) if random.random() < 0.3 else config.num_candidates
        )
        task = tasks.draw(config.batch_size, num_candidates, soft)
        chosen, title = losses(llm, task, lesson(task, random))
        optimiser.zero_grad(set_to_none=True)
        (chosen + config.title_weight * title).backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        schedule.step()
        advance(choice=chosen.item(), title=title.item())
    for hook in hooks:
        hook.remove()
    llm.eval().requires_grad_(False)
    standin.facts |= {"steps": config.steps, "pretraining_s": round(time.monotonic() - started, 1)}


def _only_what_is_wired(llm: Any) -> list[Any]:
    """Keep the circuits' zeros at zero: few steps of Adam on all weights bring more noise than they polish."""
    decoder = llm.model.decoder
    wired = [decoder.embed_tokens, decoder.embed_positions]
    for layer in decoder.layers:
        wired += [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.out_proj]
    weights = [parameter for module in wired for parameter in module.parameters()]
    return [weight.register_hook((weight.detach() != 0).to(weight.dtype).mul) for weight in weights]


def losses(llm: Any, task: Task, learnt: Lesson) -> tuple[torch.Tensor, torch.Tensor]:
    """Two cross-entropies: of the choices at branching nodes above their bound, and of the answers' tokens."""
    embeds_BTH = llm.get_input_embeddings()(learnt.tokens_BT)
    if task.soft is not None:
        embeds_BTH = fill_slots(embeds_BTH, learnt.prompts, task.soft)
    positions_BT = torch.arange(embeds_BTH.shape[1]).expand(embeds_BTH.shape[:2])
    seen_BT = torch.ones(embeds_BTH.shape[:2], dtype=torch.long)  # padding comes last, so causality hides it
    hidden_TH = hidden_states(llm, embeds_BTH, seen_BT, positions_BT).flatten(0, 1)
    title = functional.cross_entropy(vocabulary_logits(llm, hidden_TH[learnt.answer_at_A]), learnt.answer_A)
    where_M, at_E = torch.unique(learnt.edge_at_E, return_inverse=True)
    logits_E = vocabulary_logits(llm, hidden_TH[where_M])[at_E, learnt.edge_E]
    count = int(learnt.node_E.max()) + 1
    top_M = torch.full((count,), -torch.inf).scatter_reduce(0, learnt.node_E, logits_E.detach(), "amax")
    sums_M = torch.zeros(count).index_add(0, learnt.node_E, (logits_E - top_M[learnt.node_E]).exp())
    log_p_E = logits_E - (top_M + sums_M.log())[learnt.node_E]
    excess = learnt.share_E * (torch.where(learnt.share_E > 0, learnt.share_E, 1).log() - log_p_E)
    return excess.sum() / len(task.candidates), title


def examine(standin: Standin, seed: int, prompts: int = 256, num_candidates: int = 20) -> dict[str, float]:
    """How well the candidates are told apart by their slots, on vectors and prompts never met.

    Returns:
        cross_entropy of the true distribution under the LLM's ranking, its `bound` (that distribution's entropy),
        `uniform`, the `correlation` of log P with the true scores within prompts, and `agreement`: how often the
        best candidate is the truly best one.
    """
    task = standin.tasks(seed + 3).draw(prompts, num_candidates)
    ranker = Ranker(standin.llm, standin.matching, tokens_per_batch=8192)
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


def build(
    titles: pa.Array,
    prompt: PromptConfig,
    config: StandinLLMConfig,
    seed: int,
    advance: Callable[..., None] = lambda **numbers: None,
) -> Standin:
    """A pretrained, frozen stand-in; the same for the same titles, config and seed."""
    standin = construct(titles, prompt, config, seed)
    pretrain(standin, config, seed, advance)
    standin.facts |= {
        "parameters": sum(p.numel() for p in standin.llm.parameters()),
        "vocabulary": len(standin.tokenizer),
    }
    standin.facts |= {name: round(value, 4) for name, value in examine(standin, seed).items()}
    return standin
