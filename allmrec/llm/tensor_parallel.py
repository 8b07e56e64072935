"""One LLM on several GPUs of a machine: tensor parallelism by transformers' plan for the architecture.

A worker's process is rank 0 and starts a process for each other GPU. Every rank holds a part of each matrix, so all
make the same calls at the same time: what rank 0 calls by `on_all_ranks`, the other ranks call, too. Scores equal those
of the undivided LLM but for rounding. When a rank fails, all end.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from threading import Thread
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import distributed as dist
from torch import nn

from allmrec.llm.loading import LLMConfig, llm_folder, load_llm

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)  # of loading, and of a call in which a rank is lost

# Pipes to the other ranks, by LLM.
_followers: "WeakKeyDictionary[nn.Module, list[Any]]" = WeakKeyDictionary()


def refuse_without_plan(config: LLMConfig, ranks: int) -> None:
    """Raises ValueError for an LLM that cannot be divided among that number of GPUs; reads no weights."""
    from transformers import AutoConfig

    outline = AutoConfig.from_pretrained(llm_folder(config, weights=False)).get_text_config()
    if not outline.base_model_tp_plan:
        raise ValueError(
            f"workers.gpus_per_worker {ranks}: transformers has no plan for cutting llm.name {config.name!r}, of the "
            f"architecture {outline.model_type!r}, over several GPUs; set it to 1, or take an LLM of another "
            "architecture (docs/llms.md)"
        )
    heads = outline.num_attention_heads, getattr(outline, "num_key_value_heads", None) or outline.num_attention_heads
    if any(number % ranks for number in heads):
        raise ValueError(
            f"workers.gpus_per_worker {ranks} does not divide the {heads[0]} heads of llm.name {config.name!r} and the "
            f"{heads[1]} of its keys; set it to a number that does"
        )


def load_llm_in_parts(config: LLMConfig, ranks: int) -> nn.Module:
    """This process's part of the LLM, frozen, in eval mode, on its device; `ranks - 1` other processes have theirs.

    Raises:
        ValueError: as `refuse_without_plan` and `load_llm`.
    """
    refuse_without_plan(config, ranks)
    context, group = multiprocessing.get_context("spawn"), f"file://{tempfile.mkdtemp()}/group"
    pipes = []
    for rank in range(1, ranks):
        mine, theirs = context.Pipe()
        context.Process(target=_follow, args=(theirs, config, group, rank, ranks), daemon=True).start()
        theirs.close()
        pipes.append(mine)
    llm = _load_part(config, group, 0, ranks)
    _followers[llm] = pipes
    return llm


def is_in_parts(llm: nn.Module) -> bool:
    return llm in _followers


def on_all_ranks(function: Callable[..., T], llm: nn.Module, *arguments: Any) -> T:
    """`function(llm, *arguments)`, by every rank with its own part where the LLM is in parts.

    Args:
        arguments: numbers, arrays, tensors, and dataclasses of them.

    Raises:
        RuntimeError: out of memory, or a rank is lost; the LLM cannot be used any more.
    """
    if not is_in_parts(llm):
        return function(llm, *arguments)
    try:
        call = function, _moved(arguments, "cpu")
        for pipe in _followers[llm]:
            pipe.send(call)
        with torch.inference_mode(False), torch.no_grad():  # the parts are not inference tensors
            return function(llm, *arguments)
    except torch.OutOfMemoryError as error:
        release(llm)
        raise RuntimeError(f"{error} Lower llm.tokens_per_batch, or use more GPUs per worker") from error
    except Exception:
        release(llm)
        raise


def release(llm: nn.Module) -> None:
    """Let the other ranks end. A later call raises OSError, as their pipes are closed."""
    for pipe in _followers[llm]:
        pipe.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _load_part(config: LLMConfig, group: str, rank: int, ranks: int) -> nn.Module:
    os.environ["LOCAL_RANK"] = str(rank)  # by which transformers takes its device
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        backend = "nccl"
    dist.init_process_group(backend, init_method=group, rank=rank, world_size=ranks, timeout=_TIMEOUT)
    return load_llm(config, ranks)


def _follow(pipe: Any, config: LLMConfig, group: str, rank: int, ranks: int) -> None:
    """The main loop of another rank: it makes each call, and its results are discarded."""
    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    llm = _load_part(config, group, rank, ranks)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        with torch.no_grad():
            function(llm, *_moved(arguments, llm.device))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a rank is started by the first one"
    parent.join()
    os._exit(1)  # it may be waiting in a call for the first rank


def _moved(value: Any, device: Any) -> Any:
    """The value with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(one, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: _moved(getattr(value, one.name), device) for one in fields(value)})
    return value
