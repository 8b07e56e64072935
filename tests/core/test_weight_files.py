"""Weights in shards are read as they were written, and an index names files of its own folder alone."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core import weight_files as module
from allmrec.core.weight_files import SAFETENSORS, index_of, read_weights, weight_files, write_weights


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 200))
def test_what_is_written_in_shards_is_what_is_read(sizes, shard_bytes):
    tensors = {f"layer.{number}": torch.arange(size, dtype=torch.float32) for number, size in enumerate(sizes)}
    tensors["step"] = torch.tensor(7)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_BYTES", shard_bytes)
        files = write_weights(Path(folder), tensors.items(), torch.bfloat16)
        assert weight_files(Path(folder), SAFETENSORS) == files
        assert all(file.stat().st_size <= shard_bytes + 2000 for file in files)
        found = dict(read_weights(files))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.to(torch.bfloat16) if name != "step" else tensor), "integers stay"


def test_an_index_names_files_of_its_folder_alone(tmp_path):
    (tmp_path / "secret.safetensors").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / index_of(SAFETENSORS)
    index.write_text(json.dumps({"weight_map": {"weight": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match=r"lacks secret.safetensors, which model.safetensors.index.json names"):
        weight_files(folder, SAFETENSORS)
    for damaged in ("", "[]", '{"weight_map": {"weight": 1}}'):
        index.write_text(damaged)
        with pytest.raises(ValueError, match="is damaged; fetch it again"):
            weight_files(folder, SAFETENSORS)
