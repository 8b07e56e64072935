"""The frozen LLM and its tokenizer: any causal LM of transformers that takes `inputs_embeds`.

Loads safetensors only, and never runs code that comes with a model.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from allmrec.config import OtherSettings, Section
from allmrec.models import model_folder

# B prompts, T tokens, K branching nodes, H token dimension, V vocabulary

Placement = Literal["replicated", "sharded", "offloaded"]


class LLMConfig(Section):
    """Which LLM, and how it is held."""

    name: str = "facebook/opt-6.7b"  # hub name, local folder, or s3:// prefix (downloaded once a node)
    revision: str | None = None  # of a hub name; pin it for reproducible runs
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs, float32 on CPUs
    tokens_per_batch: int = 16_384  # padded tokens of one forward pass when ranking
    # In training. replicated: each worker holds all weights; sharded: DeepSpeed ZeRO-3 cuts them over the workers;
    # offloaded: cut, and kept where `offload_to` says; auto: the first of the three that fits.
    placement: Literal["auto", "replicated", "sharded", "offloaded"] = "auto"
    offload_to: str = "cpu"  # or a folder on an NVMe disk of each node
    # ZeRO++: besides, keep the weights whole within groups of so many workers (those of a node), so that the backward
    # pass gathers them there and not across nodes; 1: no.
    hpz_group: int = Field(1, ge=1)
    deepspeed: OtherSettings = Field({})  # laid over the generated DeepSpeed config, key by key


def llm_folder(config: LLMConfig, weights: bool = True) -> Path:
    """Where the LLM's files lie; see `model_folder`. Raises ValueError when there is no such model."""
    return model_folder(config.name, config.revision, "llm.name", weights)


def load_tokenizer(config: LLMConfig) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm_folder(config, weights=False))
    if tokenizer.pad_token_id is None:  # a placeholder under slots and behind short prompts; never attended to
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_llm(config: LLMConfig) -> nn.Module:
    """The LLM, frozen, in eval mode, on the CPU. Raises ValueError when there is no such model."""
    from transformers import AutoModelForCausalLM

    folder = llm_folder(config)
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype(config), use_safetensors=True)
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
