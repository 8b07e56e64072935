"""The config that DeepSpeed gets, as a plain dictionary: where weights lie and how gradients are joined."""

from typing import Any, Literal

import torch

from allmrec.projection.projectors import ProjectionConfig

Placement = Literal["replicated", "sharded"]


def deepspeed_config(config: ProjectionConfig, placement: Placement, passes: int, token_dim: int) -> dict[str, Any]:
    """For the training engine.

    Args:
        placement: `sharded` is ZeRO-3, every weight cut over the workers; `replicated` ZeRO-1, where only Adam's
            moments are cut.
        passes: forward passes of one step.
        token_dim: H of the LLM.
    """
    zero: dict[str, Any] = {
        "stage": 3 if placement == "sharded" else 1,
        # DeepSpeed sets its buckets aside as a whole; a projector's largest matrix has H x H elements.
        "reduce_bucket_size": max(token_dim**2, 1),
        "allgather_bucket_size": max(token_dim**2, 1),
        "overlap_comm": torch.cuda.is_available(),
    }
    if placement == "sharded":
        zero |= {
            "stage3_param_persistence_threshold": 10 * token_dim,  # biases and norms stay whole: not worth a message
        }
    return {
        # Only their product counts, and the batches are ours: gradients are averaged over workers and passes.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": passes,
        "gradient_clipping": config.max_gradient_norm,
        "zero_optimization": zero,
        "steps_per_print": None,
    }


def loading_config(dtype: torch.dtype) -> dict[str, Any]:
    """For loading the LLM cut over the workers. DeepSpeed takes the weights' type from here, and makes it float32
    if nothing is said; in the engine's config the same key would turn the projectors to bfloat16 too."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {"stage": 3},
    }
