"""The config that DeepSpeed gets, as a plain dictionary: where weights are stored and how gradients are reduced."""

from typing import Any

import torch

from allmrec.llm.loading import LLMConfig, Placement


def deepspeed_config(
    max_gradient_norm: float, llm: LLMConfig, placement: Placement, token_dim: int, largest_weight: int
) -> dict[str, Any]:
    """For the training engine, with the user's `llm.deepspeed_overrides` over it.

    Args:
        max_gradient_norm: longer gradients are clipped to it; 0: never.
        placement: `replicated` is ZeRO-1, where only Adam's moments are cut over the workers; the others ZeRO-3, where
            every weight is.
        token_dim: H of the LLM.
        largest_weight: elements of the largest one.
    """
    zero: dict[str, Any] = {
        "stage": 1 if placement == "replicated" else 3,
        # DeepSpeed allocates its buckets at full size; a projector's largest matrix has H x H elements.
        "reduce_bucket_size": max(token_dim**2, 1),
        "allgather_bucket_size": max(token_dim**2, 1),
        "overlap_comm": torch.cuda.is_available(),
    }
    if placement != "replicated":
        zero |= {
            "stage3_param_persistence_threshold": 10 * token_dim,  # biases and norms stay whole: not worth a message
            "zero_hpz_partition_size": llm.hpz_group,
            **_offload(llm, placement, largest_weight),
        }
    generated = {
        # Only their product counts, and the batches are ours: gradients are averaged over workers.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_gradient_norm,
        "zero_optimization": zero,
        "steps_per_print": None,
    }
    return _laid_over(generated, llm.deepspeed_overrides)


def loading_config(llm: LLMConfig, placement: Placement, dtype: torch.dtype, largest_weight: int) -> dict[str, Any]:
    """For loading the LLM cut over the workers. DeepSpeed takes the weights' type from here, and makes it float32
    if nothing is said; in the engine's config the same key would turn the projectors to bfloat16 too."""
    zero = {
        "stage": 3,
        "zero_hpz_partition_size": llm.hpz_group,
        **_offload(llm, placement, largest_weight),
    }
    generated = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
    }
    return _laid_over(generated, llm.deepspeed_overrides)


def _offload(llm: LLMConfig, placement: Placement, largest_weight: int) -> dict[str, Any]:
    if placement != "offloaded":
        return {}
    if llm.offload_to == "cpu":
        return {"offload_param": {"device": "cpu", "pin_memory": torch.cuda.is_available()}}
    return {
        "offload_param": {
            "device": "nvme",
            "nvme_path": llm.offload_to,
            "pin_memory": torch.cuda.is_available(),
            "buffer_size": largest_weight,  # of each of the buffers between disk and memory, in elements
        }
    }


def _laid_over(generated: dict[str, Any], extension: dict[str, Any]) -> dict[str, Any]:
    """`generated` with the keys of `extension` in their places, at any depth."""
    merged = dict(generated)
    for key, value in extension.items():
        there = merged.get(key)
        merged[key] = _laid_over(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return merged
