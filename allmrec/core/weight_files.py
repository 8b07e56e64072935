"""A model's weights in the public layouts, tensor by tensor: safetensors or PyTorch's files in, safetensors out.

PyTorch's files are pickles; torch's restricted unpickler builds tensors from them and runs no code. What is read is
mapped into memory where the format allows it, so that memory holds one shard of what is written. Knows names and
shapes, and no model.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"  # or an index of shards by the same name
SHARD_BYTES = 2 << 30  # of a file that is written: far below what a store takes in one put

Tensors = Iterator[tuple[str, torch.Tensor]]


def weight_files(folder: Path, layout: str) -> list[Path]:
    """A checkpoint's files in one layout, SAFETENSORS or PICKLED; none if the folder has no such checkpoint.

    Raises:
        ValueError: the index is damaged, or names files that are not there.
    """
    index = folder / index_of(layout)
    if not index.is_file():
        return [folder / layout] if (folder / layout).is_file() else []
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [folder / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index} is damaged; fetch it again") from None
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing[:5])}, which {index.name} names; fetch the whole model")
    return files


def index_of(layout: str) -> str:
    return f"{layout}.index.json"


def read_weights(files: Iterable[Path]) -> Tensors:
    """Every tensor of a checkpoint's files, with its name.

    Raises:
        ValueError: a file is truncated or damaged, or a pickle holds anything but tensors; names it.
    """
    for file in files:
        yield from _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickled(file)


def check_safetensors(files: Iterable[Path]) -> None:
    """Raises ValueError naming a file that is truncated or damaged; reads headers alone."""
    for file in files:
        with _named(file):
            safe_open(file, framework="pt")


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None = None
) -> list[Path]:
    """Write a checkpoint as safetensors, in shards of `SHARD_BYTES` and with an index where it takes more than one.

    Args:
        dtype: of all tensors of floating point numbers; by default each keeps its own.

    Returns:
        the files.
    """
    written, total = list[list[str]](), 0
    for number, shard in enumerate(_shards(tensors, dtype)):
        save_file(shard, _draft(folder, number), {"format": "pt"})
        written.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(written) == 1:
        return [_draft(folder, 0).rename(folder / SAFETENSORS)]
    stem = SAFETENSORS.removesuffix(".safetensors")
    files = [
        _draft(folder, number).rename(folder / f"{stem}-{number + 1:05d}-of-{len(written):05d}.safetensors")
        for number in range(len(written))
    ]
    names = {name: file.name for file, shard in zip(files, written, strict=True) for name in shard}
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / index_of(SAFETENSORS)).write_text(json.dumps(index, indent=1))
    return files


def _shards(
    tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None
) -> Iterator[dict[str, torch.Tensor]]:
    shard, size = dict[str, torch.Tensor](), 0
    for name, tensor in tensors:
        kept = tensor.to(dtype if dtype and tensor.is_floating_point() else tensor.dtype)
        if shard and size + kept.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        # A copy, for tied weights share their memory, which safetensors refuses.
        shard[name] = kept.clone(memory_format=torch.contiguous_format)
        size += kept.nbytes
    yield shard


def _draft(folder: Path, number: int) -> Path:
    return folder / f"{number}.draft"


def _read_safetensors(file: Path) -> Tensors:
    with _named(file), safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  it is no dictionary
            yield name, tensors.get_tensor(name)


def _read_pickled(file: Path) -> Tensors:
    try:
        mapped = zipfile.is_zipfile(file)  # else it is of the older format
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} is refused: it holds more than tensors, which could run code when it is read, or is damaged; "
            "take the model from where it is published as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        raise _damaged(file, error) from None
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise ValueError(f"{file} is refused: it holds something other than tensors by name")
    yield from found.items()


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Within it, an error of safetensors becomes a ValueError that names the file."""
    try:
        yield
    except SafetensorError as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: BaseException) -> ValueError:
    return ValueError(f"{file} is truncated or damaged ({str(error).splitlines()[0][:100]}); fetch it again")
