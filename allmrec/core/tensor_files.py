"""Tensors of an artifact: safetensors files of bounded size. Knows nothing about what they mean.

Large ones are mapped when they are read (`rows`): from the file itself where it is on a disk, and else from a copy in
the machine's cache, one for all its processes. A file is verified before it is mapped, on a disk again whenever it has
changed (`file_digests`); files are replaced and never written into, so a mapping keeps what was verified.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save

from allmrec.core.artifacts import Manifest, check_file, file_entry, invalidate, read_file, read_manifest
from allmrec.core.machine_cache import machine_file
from allmrec.core.rows import Rows, is_large, shared
from allmrec.core.storage import LocalStorage, Storage

SHARD_BYTES = 512 << 20  # of a file: one put writes it, and a process buffers it


def write_tensors(storage: Storage, name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """Write a safetensors file, or several of `SHARD_BYTES` at most; returns their entries for the manifest.

    A training's worker writes before its job enters `writing`: the artifact is invalid from here on.
    """
    invalidate(storage)
    entries = {}
    for file, part in tensor_shards(name, tensors):
        data = to_safetensors(part)
        storage.write(file, data)
        entries[file] = file_entry(data)
    return entries


def tensor_shards(name: str, tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Mapping[str, torch.Tensor]]]:
    """Files of at most `SHARD_BYTES`: one file `name` with all tensors, or numbered files with blocks of their rows.
    A row is never divided."""
    if sum(tensor.nbytes for tensor in tensors.values()) <= SHARD_BYTES:
        yield name, tensors
        return
    shard, number = dict[str, torch.Tensor](), 0
    for key, part in _row_blocks(tensors):
        if shard and (key in shard or sum(held.nbytes for held in shard.values()) + part.nbytes > SHARD_BYTES):
            yield _numbered(name, number), shard
            shard, number = {}, number + 1
        shard[key] = part
    yield _numbered(name, number), shard


def _row_blocks(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for key, tensor in tensors.items():
        rows = max(1, SHARD_BYTES * len(tensor) // max(tensor.nbytes, 1)) if tensor.dim() else 0
        for part in tensor.split(rows) if rows else [tensor]:
            yield key, part


def _numbered(name: str, number: int) -> str:
    return f"{name.removesuffix('.safetensors')}-{number:05d}.safetensors"


def to_safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})


def read_tensors(storage: Storage, name: str) -> dict[str, torch.Tensor]:
    """The tensors that `write_tensors` wrote by this name, verified; large ones are mapped (`rows.is_large`).

    Raises:
        ValueError: a file is missing or damaged; names it.
    """
    return {key: parts[0] if len(parts) == 1 else shared(Rows(parts)) for key, parts in _parts(storage, name).items()}


def read_tables(storage: Storage, name: str) -> dict[str, Rows]:
    """As `read_tensors`, for what only some rows are asked of: a table of several files stays as it is."""
    return {key: Rows(parts) for key, parts in _parts(storage, name).items()}


def _parts(storage: Storage, name: str) -> dict[str, tuple[torch.Tensor, ...]]:
    """What each file has of each tensor."""
    manifest, parts = read_manifest(storage), dict[str, tuple[torch.Tensor, ...]]()
    count = sum(file in manifest.files for file in (_numbered(name, number) for number in range(len(manifest.files))))
    for file in [_numbered(name, number) for number in range(count)] or [name]:
        for key, tensor in _read(storage, manifest, file).items():
            parts[key] = (*parts.get(key, ()), tensor)
    return parts


def _read(storage: Storage, manifest: Manifest, file: str) -> dict[str, torch.Tensor]:
    if not is_large(manifest.files[file]["size"]):
        return load(read_file(storage, manifest, file))
    with safe_open(_local(storage, manifest, file), framework="pt") as tensors:
        found = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118  it is no dictionary
    return {key: tensor if is_large(tensor.nbytes) else tensor.clone() for key, tensor in found.items()}


def _local(storage: Storage, manifest: Manifest, file: str) -> Path:
    """A verified file on a disk of this machine."""
    if isinstance(storage, LocalStorage):
        return check_file(storage, manifest, file)
    return machine_file(
        manifest.files[file]["sha256"], lambda path: path.write_bytes(read_file(storage, manifest, file))
    )
