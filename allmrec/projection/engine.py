"""DeepSpeed under Stage-2: loading the LLM in shards, the engine, and what a checkpoint needs to know of Adam.

The LLM and the projectors are one module under one engine (ZeRO-3 hooks gather each layer's weights as it runs), but
only the projectors have gradients, moments and checkpoints; the LLM's weights are never saved.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from allmrec.core.distributed import rank_and_world_size
from allmrec.core.pretrained import refuse_other_weights
from allmrec.llm.loading import LLMConfig, Placement, llm_folder, load_llm, torch_dtype
from allmrec.projection.deepspeed_config import loading_config

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names of Adam's moments


def load_llm_with_placement(config: LLMConfig, placement: Placement, largest_weight: int) -> nn.Module:
    """The frozen LLM: whole on the CPU (replicated), or cut over the workers of the process group.

    Where it is cut, no worker ever holds more than its share and one whole weight.

    Raises:
        ValueError: no such model, or its files are not just the weights that its config describes.
    """
    if placement == "replicated":
        return load_llm(config)
    deepspeed = _deepspeed()
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    folder = llm_folder(config)
    outline = AutoConfig.from_pretrained(folder)
    settings = loading_config(config, placement, torch_dtype(config), largest_weight)
    with no_init_weights(), deepspeed.zero.Init(config_dict_or_path=settings):
        llm = AutoModelForCausalLM.from_config(outline, dtype=torch_dtype(config))
    llm.tie_weights()
    _read_weights(f"llm.name {config.name!r}", llm, folder)
    return llm.requires_grad_(False).eval()


def _read_weights(name: str, llm: nn.Module, folder: Path) -> None:
    """Weight by weight from the folder's safetensors: rank 0 reads, and each worker keeps its part.

    Every worker compares names and shapes first, so that all of them refuse a checkpoint or none does.
    """
    from deepspeed import zero

    found = _tensors(llm, folder)
    wanted = llm.state_dict(keep_vars=True)
    ignored = getattr(llm, "_keys_to_ignore_on_load_unexpected", None) or []
    there = {id(wanted[name]) for name in found.keys() & wanted.keys()}  # also under the second name of a tied weight
    refuse_other_weights(
        name,
        llm,
        missing_keys=[name for name, tensor in wanted.items() if id(tensor) not in there],
        unexpected_keys=[
            name for name in found.keys() - wanted.keys() if not any(re.search(pattern, name) for pattern in ignored)
        ],
        mismatched_keys=[
            (name, shape, _whole_shape(wanted[name]))
            for name, (_, _, shape) in found.items()
            if name in wanted and shape != _whole_shape(wanted[name])
        ],
    )
    read = set()
    for name, (file, key, _) in found.items():
        tensor = wanted.get(name)
        if tensor is None or id(tensor) in read:
            continue
        read.add(id(tensor))
        with safe_open(file, framework="pt") as tensors:
            if not hasattr(tensor, "ds_id"):  # a buffer, which is not cut
                tensor.data.copy_(tensors.get_tensor(key))
                continue
            with zero.GatheredParameters([tensor], modifier_rank=0):
                if rank_and_world_size()[0] == 0:
                    tensor.data.copy_(tensors.get_tensor(key))


def _tensors(llm: nn.Module, folder: Path) -> dict[str, tuple[Path, str, list[int]]]:
    """Of each tensor in the folder's safetensors, by its name in the model: the file, its name there, and its shape."""
    prefix, wanted = f"{llm.base_model_prefix}.", llm.state_dict(keep_vars=True).keys()
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  it is no dictionary
                # The model may have been saved without its head.
                name = prefix + key if key not in wanted and prefix + key in wanted else key
                found[name] = (file, key, list(tensors.get_slice(key).get_shape()))
    return found


def _whole_shape(tensor: torch.Tensor) -> list[int]:
    return list(getattr(tensor, "ds_shape", tensor.shape))


def start_engine(
    model: nn.Module,
    trained: nn.Module,
    learning_rate: float,
    settings: dict[str, Any],
) -> Any:
    """A DeepSpeed engine over `model` whose Adam trains the weights of its part `trained`.

    Its gradients are averages over workers. Weights that are cut are cut here.

    Args:
        settings: of `deepspeed_config`.
    """
    parameters = list(trained.parameters())
    engine, *_ = _deepspeed().initialize(
        model=model,
        model_parameters=parameters,
        optimizer=torch.optim.Adam(parameters, lr=learning_rate),
        config=settings,
    )
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within it, weights that are cut over the workers are whole on each. Every worker must enter."""
    from deepspeed import zero

    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with zero.GatheredParameters(cut, enabled=bool(cut)):
        yield


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the module's whole weights, on the CPU. Every worker must call it."""
    with gathered(module.parameters()):
        return {name: parameter.detach().cpu().clone() for name, parameter in module.named_parameters()}


def set_weights(module: nn.Module, found: dict[str, torch.Tensor]) -> None:
    """Put back what `weights` gave, for forward passes: an optimiser keeps its own. Every worker must call it."""
    from deepspeed import zero

    for name, parameter in module.named_parameters():
        cut = [parameter] if hasattr(parameter, "ds_id") else []
        with torch.no_grad(), zero.GatheredParameters(cut, modifier_rank=0, enabled=bool(cut)):
            parameter.copy_(found[name])


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

    rank, world = rank_and_world_size()
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


def checkpoint_activations(llm: nn.Module) -> None:
    """From now on the LLM's layers keep nothing but their input for the backward pass, and run again in it.

    By reentrant checkpoints: the others compare the weights' shapes, which ZeRO-3 changes in between. Not by the
    model's own switch, which needs training mode and so turns dropout on.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in llm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable[..., Any], hidden_BTH: torch.Tensor, **others: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(hidden_BTH, **others)
    return checkpoint(partial(forward, **others), hidden_BTH, use_reentrant=True)


def full_size(parameter: nn.Parameter) -> int:
    """Elements of the whole weight, wherever its parts are."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def checksum(module: nn.Module) -> int:
    """The sum of the bits of all frozen weights, modulo 2^64: the same wherever they are. A collective."""
    total = 0
    for parameter in (parameter for parameter in module.parameters() if not parameter.requires_grad):
        with gathered([parameter]):
            bits = parameter.detach().contiguous().view({2: torch.int16, 4: torch.int32}[parameter.element_size()])
            total += int(bits.sum(dtype=torch.int64))
    return total % 2**64


def _local(parameter: nn.Parameter) -> torch.Tensor:
    """What of the weight is on this worker: its part, or all of it."""
    return getattr(parameter, "ds_tensor", parameter)


def _deepspeed() -> Any:
    """DeepSpeed, joined to the existing process group."""
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
