"""DeepSpeed under Stage-2: loading the LLM in shards, the engine, and what a checkpoint needs to know of Adam.

The LLM and the projectors are one module under one engine (ZeRO-3 hooks gather each layer's weights as it runs), but
only the projectors have gradients, moments and checkpoints; the LLM's weights are never saved.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from allmrec.distributed import place, summed
from allmrec.llm.loading import LLMConfig, load_llm, torch_dtype
from allmrec.projection.deepspeed_config import Placement, deepspeed_config, loading_config
from allmrec.projection.projectors import ProjectionConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's moments


def load_placed_llm(config: LLMConfig) -> nn.Module:
    """The frozen LLM, on the CPU (replicated) or cut over the workers of the process group (sharded)."""
    if config.placement == "replicated":
        return load_llm(config)
    _deepspeed()
    settings = _loading_in_shards(loading_config(torch_dtype(config)))  # noqa: F841  transformers looks for it
    return load_llm(config)


def start_engine(
    model: nn.Module, trained: nn.Module, config: ProjectionConfig, placement: Placement, passes: int, token_dim: int
) -> Any:
    """A DeepSpeed engine over `model` whose Adam trains the weights of its part `trained`.

    Its gradients are averages over workers and passes. Weights that are cut are cut here.
    """
    parameters = list(trained.parameters())
    engine, *_ = _deepspeed().initialize(
        model=model,
        model_parameters=parameters,
        optimizer=torch.optim.Adam(parameters, lr=config.learning_rate),
        config=deepspeed_config(config, placement, passes, token_dim),
    )
    return engine


@contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it, weights that are cut over the workers are whole on each. Every worker must enter."""
    from deepspeed import zero

    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with zero.GatheredParameters(cut, enabled=bool(cut)):
        yield


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the module's whole weights, on the CPU. Every worker must call it."""
    with whole(module.parameters()):
        return {name: parameter.detach().cpu().clone() for name, parameter in module.named_parameters()}


def moments(module: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Adam's moments of the module's whole weights, once a step was made. Every worker must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return {
        moment: {
            name: safe_get_full_optimizer_state(parameter, moment).cpu().clone()
            for name, parameter in module.named_parameters()
        }
        for moment in MOMENTS
    }


def set_moments(engine: Any, module: nn.Module, found: dict[str, dict[str, torch.Tensor]], step: int) -> None:
    """Put back what `moments` gave, as after `step` steps. The optimiser must have made a step, so that it has any."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    rank, world = place()
    for moment in MOMENTS:
        for name, parameter in module.named_parameters():
            value = found[moment][name].to(engine.device)
            if hasattr(parameter, "ds_id"):  # setting it as a whole fails where the workers' parts are not equal
                size = _local(parameter).numel()
                padded = F.pad(value.flatten(), (0, size * world - value.numel()))
                safe_set_local_optimizer_state(parameter, padded[rank * size : (rank + 1) * size], moment)
            else:
                safe_set_full_optimizer_state(parameter, value, moment)
    for state in engine.optimizer.optimizer.state.values():
        state["step"].fill_(step)


def checksum(module: nn.Module) -> int:
    """The sum of the bits of all weights, modulo 2^64: the same for one worker and for many. A collective."""
    parameters = list(module.parameters())
    total = torch.zeros((), dtype=torch.int64, device=_local(parameters[0]).device)
    for parameter in parameters:
        part = _local(parameter).detach().contiguous()
        bits = part.view({2: torch.int16, 4: torch.int32}[part.element_size()]).sum(dtype=torch.int64)
        total += bits
    return int(summed(total)) if hasattr(parameters[0], "ds_id") else int(total)


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """What of the weight lies on this worker: its part, or all of it."""
    return getattr(parameter, "ds_tensor", parameter)


def _loading_in_shards(config: dict[str, Any]) -> Any:
    """While the returned object lives, `from_pretrained` cuts weights over the workers as it reads them."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, set_hf_deepspeed_config

    class LoadingInShards(HfDeepSpeedConfig):
        """HfDeepSpeedConfig wants `accelerate` to parse the dictionary; the two questions asked need no parsing."""

        def __init__(self) -> None:
            set_hf_deepspeed_config(self)
            self.config = config

        def is_zero3(self) -> bool:
            return True

    return LoadingInShards()


def _deepspeed() -> Any:
    """DeepSpeed, joined to the process group that is there."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {}  # gloo as it is, not a faster all-reduce that is compiled at run time
    assert dist.is_initialized(), "DeepSpeed trains in a process group"
    deepspeed.init_distributed(dist_backend=dist.get_backend())
    return deepspeed
