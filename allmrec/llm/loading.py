"""The frozen LLM and its tokenizer: any causal LM of transformers that takes `inputs_embeds`.

Loads from a hub name or a local folder, safetensors only, and never runs code that comes with a model.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from allmrec.artifacts import sha256
from allmrec.config import Section
from allmrec.hashing import fingerprint

# B prompts, T tokens, K branching nodes, H token dimension, V vocabulary


class LLMConfig(Section):
    """Which LLM, and how it is held."""

    name: str = "facebook/opt-6.7b"  # hub name or local folder
    revision: str | None = None  # of a hub name; pin it for reproducible runs
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs, float32 on CPUs
    # In training. sharded: DeepSpeed ZeRO-3 cuts the weights over the workers; replicated: each holds them all.
    placement: Literal["replicated", "sharded"] = "sharded"
    tokens_per_batch: int = 16_384  # padded tokens of one forward pass when ranking


def load_tokenizer(config: LLMConfig) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.name, revision=config.revision)
    if tokenizer.pad_token_id is None:  # a placeholder under slots and behind short prompts; never attended to
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_llm(config: LLMConfig) -> nn.Module:
    """The LLM, frozen, in eval mode, on the CPU.

    Raises:
        ValueError: no such model.
    """
    from transformers import AutoModelForCausalLM

    try:
        llm = AutoModelForCausalLM.from_pretrained(
            config.name, revision=config.revision, dtype=torch_dtype(config), use_safetensors=True
        )
    except OSError as error:
        raise ValueError(
            f"llm.name {config.name!r} cannot be loaded ({str(error).splitlines()[0]}); "
            "give a hub name or a folder in the Hugging Face layout, e.g. one that `allmrec standin llm` wrote"
        ) from None
    return llm.requires_grad_(False).eval()


def torch_dtype(config: LLMConfig) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, config.dtype)


def max_positions(llm: nn.Module) -> int:
    """The longest sequence that the LLM takes, in tokens."""
    return int(llm.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]


def hidden_states(
    llm: Any, inputs_embeds_BTH: torch.Tensor, attention_mask: torch.Tensor, position_ids_BT: torch.Tensor
) -> torch.Tensor:
    """The last hidden states (B, T, H), before the vocabulary projection.

    Args:
        attention_mask: (B, T) of 0/1 on top of causality, or additive (B, 1, T, T) instead of it.
    """
    return llm.base_model(
        inputs_embeds=inputs_embeds_BTH,
        attention_mask=attention_mask,
        position_ids=position_ids_BT,
        use_cache=False,
    ).last_hidden_state


def vocabulary_logits(llm: Any, hidden_KH: torch.Tensor) -> torch.Tensor:
    """Logits (K, V) in float32 at the given positions only."""
    return llm.get_output_embeddings()(hidden_KH).float()


def model_identity(name: str, revision: str | None) -> str:
    """What a model is: a fingerprint of a local folder's files, or name@revision of a hub model."""
    folder = Path(name)
    if not folder.is_dir():
        return f"{name}@{revision or 'main'}"
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return fingerprint({path.relative_to(folder).as_posix(): sha256(path.read_bytes()) for path in files})
