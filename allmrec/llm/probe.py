"""Whether an LLM can be ranked by tries at all: several continuations in one row must give what each alone gives.

That holds where nothing but attention, by transformers' masks, carries anything from token to token, and positions are
given. It is looked up where the model says so, and measured on a few tokens where it does not: a row with a trie beside
plain forward passes.
"""

import inspect
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from allmrec.llm.forward import refusal
from allmrec.llm.packed import rank
from allmrec.llm.prompt import Prompts, Titles
from allmrec.llm.trie import build_tries

_STATE = ("linear", "conv", "mamba", "recurrent", "hybrid")  # in names of kinds of layers
# Of a probability: what rounding can do. In half precision a pass over other shapes is off by as much.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
# Titles of one length, by number of a token: the plain passes need no padding.
_TITLES = np.array([[0, 1, 2], [0, 1, 3], [0, 4, 2], [5, 6, 7], [5, 6, 3], [8, 4, 7]])
_PROMPTS = (9, 6)  # tokens


_sound: WeakSet[Any] = WeakSet()  # LLMs that were found exact


def refuse_inexact(llm: Any) -> None:
    """Raises ValueError naming the LLM's architecture when it cannot be ranked by tries. Measures an LLM once."""
    if llm not in _sound:
        refuse_by_name(llm)
        try:
            found = deviation(llm)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            raise refusal(llm, f"its forward pass fails on a row with a trie ({error})") from error
        refuse_deviating(llm, found)
        _sound.add(llm)


def refuse_deviating(llm: Any, found: float) -> None:
    """Raises ValueError naming the LLM's architecture when a `deviation` is more than rounding."""
    limit = _TOLERANCE[llm.dtype]
    if not found <= limit:
        raise refusal(llm, f"packed candidates are off by {found:.2g} in a probability, of which rounding is {limit:g}")


def refuse_by_name(llm: Any) -> None:
    """Raises ValueError for an LLM that cannot be ranked by tries whatever its weights; reads none of them."""
    config, takes = llm.config.get_text_config(), inspect.signature(llm.forward).parameters
    kinds = {str(kind) for kind in getattr(config, "layer_types", None) or []}
    if getattr(llm, "_is_stateful", False) or any(name in kind for kind in kinds for name in _STATE):
        raise refusal(llm, "some of its layers carry a state or a convolution from token to token")
    if getattr(config, "alibi", False):
        raise refusal(llm, "ALiBi measures distances in the row and not in the text")
    if "local" in getattr(config, "attention_layers", []):
        raise refusal(llm, "its local attention measures distances in the row and not in the text")
    for name in ("inputs_embeds", "position_ids"):
        if name not in takes:
            raise refusal(llm, f"its forward pass takes no {name}")
    if llm.get_output_embeddings() is None:
        raise refusal(llm, "it has no vocabulary projection")


@torch.no_grad()
def deviation(llm: Any) -> float:
    """The largest difference of a P(c) between a trie's row and plain forward passes, over a few tokens."""
    vocabulary = llm.config.get_text_config().vocab_size
    tokens = np.random.default_rng(0).choice(vocabulary, sum(_PROMPTS) + 9, replace=vocabulary < 24).astype(np.int32)
    end, text = int(tokens[0]), tokens[9:]
    paths = tokens[_TITLES]
    count = len(paths)
    titles = Titles(paths.ravel(), np.array([0, *range(0, 3 * count + 1, 3)]), np.arange(count + 1, dtype=np.int32))
    prompts = Prompts(text, np.cumsum([0, *_PROMPTS]), np.zeros(0, np.int64), np.zeros(0, np.int32))
    candidates = np.tile(np.arange(1, count + 1, dtype=np.int32), (len(_PROMPTS), 1))
    packed = np.exp(rank(llm, prompts, build_tries(titles, candidates, end), None, end))
    parts = np.split(text, prompts.offsets[1:-1])
    return float(np.abs(packed - np.stack([_plain(llm, part, paths) for part in parts])).max())


def _plain(llm: Any, prompt: np.ndarray, paths: np.ndarray) -> np.ndarray:
    """P of each path (C, depth) behind the prompt, each read alone."""
    read = torch.from_numpy(np.hstack([np.tile(prompt, (len(paths), 1)), paths[:, :-1]])).long()
    logits = llm(input_ids=read.to(llm.device), use_cache=False).logits[:, len(prompt) - 1 :].double().cpu()
    p = np.ones(len(paths))
    for row, path in enumerate(paths):
        for depth, token in enumerate(path):
            choices = sorted(set(paths[(paths[:, :depth] == path[:depth]).all(axis=1), depth].tolist()))
            p[row] *= float(logits[row, depth, choices].softmax(0)[choices.index(token)])
    return p
