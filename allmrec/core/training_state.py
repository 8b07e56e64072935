"""Training state on disk: nested dictionaries, lists, numbers and tensors as safetensors + JSON.

What `state_dict()` of models and optimisers return goes in and comes out equal, integer keys included; nothing
is pickled. Knows no model; where a checkpoint is stored and when it is taken is the jobs' business.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TENSORS, STRUCTURE = "state.safetensors", "state.json"


def save_state(folder: str | Path, state: Any) -> None:
    """Write `state` into an existing folder. Tensors are copied to the CPU.

    Raises:
        TypeError: the state holds something that is no dictionary, list, tuple, tensor or JSON value.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_strip(state, tensors))
    save_file(tensors, Path(folder, TENSORS))
    Path(folder, STRUCTURE).write_text(structure)


def load_state(folder: str | Path) -> Any:
    """What `save_state` wrote; tensors on the CPU, tuples as lists."""
    return _restore(json.loads(Path(folder, STRUCTURE).read_text()), load_file(Path(folder, TENSORS)))


def _strip(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The structure as JSON, its tensors moved to `tensors`. Dictionaries become pairs: JSON knows string keys only."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[key, _strip(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [_strip(item, tensors) for item in value]
    return value


def _restore(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _restore(item, tensors) for key, item in value["pairs"]}
