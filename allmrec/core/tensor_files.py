"""Tensors of an artifact: safetensors files of bounded size. Knows nothing about what they mean."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from allmrec.core.artifacts import file_entry, invalidate, read_file, read_manifest
from allmrec.core.storage import Storage

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
    """The tensors that `write_tensors` wrote by this name, verified."""
    manifest, parts = read_manifest(storage), dict[str, list[torch.Tensor]]()
    count = sum(file in manifest.files for file in (_numbered(name, number) for number in range(len(manifest.files))))
    for file in [_numbered(name, number) for number in range(count)] or [name]:
        for key, tensor in load(read_file(storage, manifest, file)).items():
            parts.setdefault(key, []).append(tensor)
    return {key: torch.cat(found) if len(found) > 1 else found[0] for key, found in parts.items()}
