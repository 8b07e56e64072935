"""The frozen LLM and its tokenizer: any causal LM of transformers that takes `inputs_embeds`.

Loads safetensors only, and never runs code that comes with a model.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from allmrec.core.pretrained import model_folder, refuse_other_weights
from allmrec.core.settings import OtherSettings, Section

Placement = Literal["replicated", "sharded", "offloaded"]


class LLMConfig(Section):
    """Which LLM, and where its weights are kept."""

    name: str = "facebook/opt-6.7b"  # hub name, local folder, or s3:// prefix (downloaded once per node)
    revision: str | None = None  # of a hub name; pin it for reproducible results
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on GPUs, float32 on CPUs
    tokens_per_batch: int = 16_384  # padded tokens in one forward pass of ranking
    # In training. replicated: every worker has all weights; sharded: DeepSpeed ZeRO-3 partitions them over the workers;
    # offloaded: partitioned, and kept in `offload_to`; auto: the first of the three that fits.
    placement: Literal["auto", "replicated", "sharded", "offloaded"] = "auto"
    offload_to: str = "cpu"  # cpu, or a folder on an NVMe disk of each node
    # ZeRO++ hpZ: workers per group (those of a node) that also keeps all weights, so that the backward pass gathers
    # them within a node; 1: off.
    hpz_group: int = Field(1, ge=1)
    deepspeed_overrides: OtherSettings = Field({})  # override keys of the generated DeepSpeed config


def llm_folder(config: LLMConfig, weights: bool = True) -> Path:
    """Where the LLM's files are; see `model_folder`. Raises ValueError when there is no such model."""
    revision = f" --revision {config.revision}" if config.revision else ""
    remedy = (
        f"run `allmrec models import {config.name} --to models/{Path(config.name).name}{revision}` once, which makes "
        "safetensors of it, and set llm.name to that folder"
    )
    return model_folder(config.name, config.revision, "llm.name", weights, remedy)


def load_tokenizer(config: LLMConfig) -> Any:
    """The LLM's tokenizer, whose pad token is one that the LLM has.

    Raises:
        ValueError: no such model, no token that ends a title, or tokens that titles may hold and the LLM has not.
    """
    from transformers import AutoConfig, AutoTokenizer

    folder = llm_folder(config, weights=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = int(AutoConfig.from_pretrained(folder).get_text_config().vocab_size)
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError(
            f"the tokenizer of llm.name {config.name!r} has no end token, which is what ends a title; "
            "give it an eos_token in its tokenizer_config.json"
        )
    special = set(tokenizer.all_special_ids)
    added = {number: token for token, number in tokenizer.get_added_vocab().items()}
    unknown = [added[number] for number in added if number >= known and number not in special]
    unknown += [added[number] for number in (end, tokenizer.bos_token_id) if number is not None and number >= known]
    if unknown:
        raise ValueError(
            f"the tokenizer of llm.name {config.name!r} has {unknown[:3]}, which are beyond the {known} embeddings of "
            "the LLM; take the tokenizer that the LLM was trained with"
        )
    # A placeholder under slots and behind short prompts, never attended to; the LLM needs an embedding for it.
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= known:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_llm(config: LLMConfig, ranks: int = 1) -> nn.Module:
    """The LLM, frozen, in eval mode, on the CPU.

    Args:
        ranks: of more than one, all of `torch.distributed`, each loads its part, and onto its own device.

    Raises:
        ValueError: no such model, or its files are not just the weights that its config describes.
    """
    return load_checkpoint(f"llm.name {config.name!r}", llm_folder(config), torch_dtype(config), ranks=ranks)


def load_checkpoint(
    name: str, folder: Path, dtype: torch.dtype | str, safetensors: bool = True, ranks: int = 1
) -> nn.Module:
    """A folder's LLM, frozen, in eval mode, on the CPU.

    Args:
        name: of the checkpoint, for messages.
        dtype: "auto" is the config's.
        safetensors: or else PyTorch's files, by the restricted unpickler.
        ranks: see `load_llm`.

    Raises:
        ValueError: the files are not just the weights that the config describes.
    """
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    llm, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=safetensors,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are listed
        **({"distributed_config": DistributedConfig(tp_size=ranks)} if ranks > 1 else {}),
    )
    refuse_other_weights(name, llm, **found)
    return llm.requires_grad_(False).eval()


def torch_dtype(config: LLMConfig) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, config.dtype)


def max_positions(llm: nn.Module) -> int:
    """The longest sequence that the LLM takes, in tokens. Raises ValueError when its config does not say."""
    return positions_of(llm.config)


def positions_of(config: Any) -> int:
    """Likewise, of a model's config."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        raise ValueError(
            f"the config of this LLM, of the architecture {config.model_type!r}, does not say how many tokens it "
            "takes; take one of the architectures that docs/llms.md lists as supported"
        )
    return int(positions)
