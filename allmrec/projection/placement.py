"""Where the LLM's weights are stored while the projectors train, and what that takes: `llm.placement`.

Estimates from the model's config alone, for a plan before anything is loaded, and for `auto`.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch

from allmrec.core.distributed import all_reduce_min
from allmrec.llm.loading import LLMConfig, Placement, llm_folder, positions_of, torch_dtype
from allmrec.llm.probe import refuse_by_name

_HEADROOM = 0.9  # of the free memory: buffers and fragmentation take the rest
# Numbers of H elements that one layer keeps for the backward pass to its inputs, per token: the inputs of two norms,
# queries, keys, values, attention's output, and four of the feed-forward part. No weight has a gradient, so no input
# of a matrix is kept.
_KEPT = 10


@dataclass(frozen=True)
class Outline:
    """What an LLM is made of, without its weights."""

    parameters: int
    weight_bytes: int
    largest_weight: int  # elements
    layer_bytes: int
    layers: int
    token_dim: int
    itemsize: int  # bytes of an element
    positions: int  # tokens at most


def llm_without_weights(config: LLMConfig) -> Any:
    """Its modules and their shapes. Raises ValueError when there is no such model."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llm_folder(config, weights=False)))


def llm_outline(config: LLMConfig) -> Outline:
    """Raises ValueError when there is no such model, or one that cannot be ranked by tries."""
    llm = llm_without_weights(config)
    outline = llm.config
    refuse_by_name(llm)
    sizes = [parameter.numel() for parameter in llm.parameters()]
    embedding = llm.get_input_embeddings().weight
    layers, itemsize = int(outline.get_text_config().num_hidden_layers), torch_dtype(config).itemsize
    return Outline(
        parameters=sum(sizes),
        weight_bytes=sum(sizes) * itemsize,
        largest_weight=max(sizes),
        layer_bytes=(sum(sizes) - embedding.numel()) * itemsize // layers,
        layers=layers,
        token_dim=int(embedding.shape[1]),
        itemsize=itemsize,
        positions=positions_of(outline),
    )


def activation_bytes(outline: Outline, tokens: int, checkpointing: bool, weight_inputs: int = 0) -> int:
    """What a pass over `tokens` tokens keeps for its backward pass; with checkpointing every layer's input.

    Args:
        weight_inputs: matrices of a layer whose weights have gradients; their inputs, in float32, are kept as well.
    """
    of_layer = _KEPT + weight_inputs * torch.float32.itemsize // outline.itemsize
    kept = outline.layers + of_layer if checkpointing else of_layer * outline.layers
    return tokens * kept * outline.token_dim * outline.itemsize


def worker_bytes(outline: Outline, placement: Placement, world: int, activations: int) -> int:
    """Device memory of one of `world` workers. Where weights are cut, one layer is whole and the next on its way."""
    weights = outline.weight_bytes
    gathered = 2 * max(outline.layer_bytes, outline.largest_weight * outline.itemsize)
    here = {"replicated": weights, "sharded": weights // world + gathered, "offloaded": gathered}
    return here[placement] + activations


def gathered_bytes(outline: Outline, placement: Placement, world: int) -> int:
    """What one worker receives in one pass: every weight that it does not hold, forwards and backwards."""
    return 0 if placement == "replicated" else 2 * outline.weight_bytes * (world - 1) // world


def choose_placement(outline: Outline, world: int, activations: int, free: int) -> Placement:
    """The first of replicated, sharded and offloaded that fits into `free` bytes of a worker."""
    candidates: tuple[Placement, ...] = ("replicated", "sharded") if world > 1 else ("replicated",)
    for placement in candidates:
        if worker_bytes(outline, placement, world, activations) <= _HEADROOM * free:
            return placement
    return "offloaded"


def free_bytes() -> int:
    """Free memory of this worker's device; of CPUs its share of the node's. The least of all workers'. A collective."""
    if torch.cuda.is_available():
        return all_reduce_min(torch.cuda.mem_get_info()[0])
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return all_reduce_min(available // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
