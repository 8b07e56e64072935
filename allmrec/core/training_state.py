"""Training state on disk: nested dictionaries, lists, numbers and tensors as safetensors + JSON.

What `state_dict()` of models and optimisers return goes in and comes out equal, integer keys included; nothing
is pickled. Knows no model; where a checkpoint is stored and when it is taken is the jobs' business.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

STRUCTURE = "state.json"
_FILE_BYTES = 256 << 20  # of a file's tensors, which are twice in memory while it is written; or one larger tensor


def save_state(folder: str | Path, state: Any) -> None:
    """Write `state` into an existing folder. Tensors are copied to the CPU, those of one file at a time.

    Raises:
        TypeError: the state holds something that is no dictionary, list, tuple, tensor or JSON value.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_strip(state, tensors))
    for number, names in enumerate(_files(tensors)):
        copies = {name: tensors[name].detach().cpu().clone().contiguous() for name in names}
        save_file(copies, Path(folder, f"state-{number:05d}.safetensors"))
    Path(folder, STRUCTURE).write_text(structure)


def load_state(folder: str | Path) -> Any:
    """What `save_state` wrote; tensors on the CPU, tuples as lists."""
    tensors = {name: tensor for file in Path(folder).glob("*.safetensors") for name, tensor in load_file(file).items()}
    return _restore(json.loads(Path(folder, STRUCTURE).read_text()), tensors)


def _files(tensors: dict[str, torch.Tensor]) -> Iterator[list[str]]:
    """The names of the tensors of each file."""
    names, held = list[str](), 0
    for name, tensor in tensors.items():
        if names and held + tensor.nbytes > _FILE_BYTES:
            yield names
            names, held = [], 0
        names, held = [*names, name], held + tensor.nbytes
    yield names


def _strip(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The structure as JSON, its tensors moved to `tensors`. Dictionaries become pairs: JSON knows string keys only."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value
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
