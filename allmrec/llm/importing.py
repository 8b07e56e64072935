"""An LLM as it is published, made into what `llm.name` takes: safetensors, config and tokenizer, under a manifest.

Safetensors are copied as they are; PyTorch's files are read by the restricted unpickler, shard by shard; GGUF is
unpacked by transformers (the extra `gguf`). The result is loaded once, and its logits are compared with the source's,
before it gets its name. Where files come from is the business of `pretrained`, their formats that of `weight_files`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from allmrec.core.artifacts import MANIFEST, Manifest, find_manifest, read_manifest, writing
from allmrec.core.file_digests import file_sha256
from allmrec.core.hashing import fingerprint
from allmrec.core.pretrained import OTHER_DATA, fetch_files, list_files
from allmrec.core.storage import LocalStorage, Storage
from allmrec.core.version import __version__
from allmrec.core.weight_files import (
    PICKLED,
    SAFETENSORS,
    SHARD_BYTES,
    check_safetensors,
    index_of,
    read_weights,
    weight_files,
    write_weights,
)
from allmrec.llm.loading import LLMConfig, load_checkpoint, load_tokenizer

KIND = "llm"
DType = Literal["float32", "bfloat16"]
_GGUF = ".gguf"
_TOKENS = 16  # whose logits are compared
_TOLERANCE = 1e-3  # of the largest logit: what another order of sums may do


@dataclass(frozen=True)
class Source:
    """A published LLM whose files are here."""

    folder: Path
    layout: str  # SAFETENSORS, PICKLED, or the name of a GGUF file
    identity: str  # commit of a hub name, else a fingerprint of the files


def import_llm(name: str, revision: str | None, target: Storage, dtype: DType | None = None) -> tuple[Manifest, bool]:
    """Bring an LLM into a folder or an S3 prefix, unless the same import is there.

    Args:
        name: hub name, folder or s3:// prefix; a file of it where it holds several GGUF files.
        revision: of a hub name.
        dtype: that weights are converted to; by default they keep theirs (GGUF: float32).

    Returns:
        the manifest, and whether anything was done.

    Raises:
        ValueError: no such model; a file is damaged or holds code; the checkpoint is not whole; the target holds
            something else.
    """
    source = fetch(name, revision)
    described = {"source": name, "revision": source.identity, "dtype": dtype}
    identity = fingerprint({"code": __version__, **described, "layout": source.layout})
    there = find_manifest(target)
    if there is not None and there.fingerprint == identity:
        return there, False
    if (there is None or there.kind != KIND) and next(target.list(), None) is not None:
        raise ValueError(f"{target.uri} holds other files, which an import would replace; name an empty folder")
    with _draft(target) as draft:
        logits = _write(source, draft, None if dtype is None else getattr(torch, dtype))
        stats = _check(name, draft, logits)
        with writing(target, KIND, identity, described) as out:
            mode = (draft / "config.json").stat().st_mode  # safetensors writes what its owner alone may read
            for path in sorted(draft.iterdir()):
                path.chmod(mode)
                out.add({path.name: {"sha256": file_sha256(path), "size": path.stat().st_size}})
                _put(path, target)
            out.stats |= stats
    return read_manifest(target), True


def fetch(name: str, revision: str | None) -> Source:
    """The LLM's files, brought here; of its layouts the safest: safetensors, PyTorch's, GGUF.

    Raises:
        ValueError: no such model, or no weights in a layout that is read.
    """
    model, _, file = name.rpartition("/") if name.endswith(_GGUF) else (name, "", "")
    model = model or "."
    found, identity = list_files(model, revision, "the model")
    for layout in () if file else (SAFETENSORS, PICKLED):
        if layout in found or index_of(layout) in found:
            stem, _, ending = layout.rpartition(".")
            folder = fetch_files(model, identity, "the model", [f"{stem}*.{ending}", *OTHER_DATA])
            return Source(folder, layout, identity)
    packed = [file] if file else [name for name in found if name.endswith(_GGUF)]
    if len(packed) > 1:
        raise ValueError(f"{name} holds {len(packed)} GGUF files; name one as {name}/FILE: {', '.join(packed[:5])}")
    if not packed or packed[0] not in found:
        raise ValueError(
            f"{name} has no weights that can be imported: {SAFETENSORS}, {PICKLED}, an index of either, or a GGUF file"
        )
    return Source(fetch_files(model, identity, "the model", packed), packed[0], identity)


def _write(source: Source, draft: Path, dtype: torch.dtype | None) -> torch.Tensor:
    """Lay weights, config and tokenizer out in `draft`. Returns the source's logits."""
    if source.layout.endswith(_GGUF):
        return _write_unpacked(source, draft, dtype or torch.float32)
    for pattern in OTHER_DATA:
        for path in source.folder.glob(pattern):
            if path.name not in (MANIFEST, index_of(SAFETENSORS), index_of(PICKLED)):
                shutil.copyfile(path, draft / path.name)
    files = weight_files(source.folder, source.layout)
    safe = source.layout == SAFETENSORS
    if safe:
        check_safetensors(files)
    if safe and dtype is None and max(file.stat().st_size for file in files) <= SHARD_BYTES:
        for file in [*files, source.folder / index_of(SAFETENSORS)]:
            if file.exists():
                shutil.copyfile(file, draft / file.name)
    else:
        write_weights(draft, read_weights(files), dtype)
    if dtype is not None:
        _set_dtype(draft / "config.json", dtype)
    return _logits(load_checkpoint(str(source.folder), source.folder, dtype or "auto", safe))


def _write_unpacked(source: Source, draft: Path, dtype: torch.dtype) -> torch.Tensor:
    """Likewise of a GGUF file, whose config and tokenizer are inside."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        config = AutoConfig.from_pretrained(source.folder, gguf_file=source.layout)
    except ImportError:
        raise ValueError("GGUF files are read with the package gguf; run `pip install 'allmrec[gguf]'`") from None
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        outline = AutoModelForCausalLM.from_config(config, dtype=dtype)
    path = source.folder / source.layout
    tensors = load_gguf_checkpoint(path, return_tensors=True, model_to_load=outline, torch_dtype=dtype)["tensors"]
    write_weights(draft, tensors.items(), dtype)
    config.dtype = dtype
    config.architectures = [type(outline).__name__]
    config.save_pretrained(draft)
    AutoTokenizer.from_pretrained(source.folder, gguf_file=source.layout).save_pretrained(draft)
    llm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    llm.load_state_dict(tensors, strict=False)  # what is missing shows when the result is loaded
    llm.tie_weights()
    return _logits(llm.eval())


def _check(name: str, draft: Path, expected: torch.Tensor) -> dict[str, Any]:
    """Load what was written, and compare its logits with the source's.

    Raises:
        ValueError: weights are missing or unknown, the tokenizer does not fit, or logits differ.
    """
    load_tokenizer(LLMConfig(name=str(draft)))
    llm = load_checkpoint(name, draft, "auto")
    difference = float((_logits(llm) - expected).abs().max() / expected.abs().max())
    if not difference <= _TOLERANCE:  # nor NaN
        raise ValueError(
            f"{name}: the imported LLM's logits differ from the source's by {difference:.2g} of the largest one, "
            f"and rounding explains {_TOLERANCE:g}; nothing was kept"
        )
    parameters = sum(parameter.numel() for parameter in llm.parameters())
    return {"architecture": type(llm).__name__, "parameters": parameters, "logits_off_by": difference}


@torch.no_grad()
def _logits(llm: nn.Module) -> torch.Tensor:
    """Of a few tokens, float32."""
    vocabulary = llm.config.get_text_config().vocab_size  # type: ignore[union-attr,operator]
    tokens = torch.from_numpy(np.random.default_rng(0).integers(vocabulary, size=(1, _TOKENS)))
    return llm(input_ids=tokens, use_cache=False).logits.float()


def _set_dtype(path: Path, dtype: torch.dtype) -> None:
    """In the config, where `dtype: auto` of transformers looks."""
    config = json.loads(path.read_text())
    config.pop("torch_dtype", None)
    path.write_text(json.dumps(config | {"dtype": str(dtype).removeprefix("torch.")}, indent=2))


@contextmanager
def _draft(target: Storage) -> Iterator[Path]:
    """An empty folder, on the target's disk where that is one; it is deleted in the end."""
    if not isinstance(target, LocalStorage):
        with TemporaryDirectory() as folder:
            yield Path(folder)
        return
    draft = target.root.with_name(f"{target.root.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)  # of an import that was killed
    draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft)


def _put(path: Path, target: Storage) -> None:
    if isinstance(target, LocalStorage):
        target.root.mkdir(parents=True, exist_ok=True)
        os.replace(path, target.root / path.name)
    else:
        target.write(path.name, path.read_bytes())
