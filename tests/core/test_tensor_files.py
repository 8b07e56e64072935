import pytest
import torch

from allmrec.core import tensor_files
from allmrec.core.artifacts import find_manifest, read_manifest, writing
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors, write_tensors


def test_tensors_come_back_bit_for_bit(storage: Storage) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.tensor([1, 2], dtype=torch.int64), "c": torch.randn(2).bfloat16()}
    with writing(storage, "weights", "step") as out:
        out.add(write_tensors(storage, "w.safetensors", tensors))
    assert read_manifest(storage).files.keys() == {"w.safetensors"}
    back = read_tensors(storage, "w.safetensors")
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    storage.write("w.safetensors", b"x" + storage.read("w.safetensors")[1:])
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged"):
        read_tensors(storage, "w.safetensors")


def test_what_is_written_outside_of_a_block_is_no_artifact_yet(storage: Storage) -> None:
    with writing(storage, "weights", "step") as out:
        out.add(write_tensors(storage, "w.safetensors", {"a": torch.zeros(2)}))
    write_tensors(storage, "w.safetensors", {"a": torch.ones(2)})
    assert find_manifest(storage) is None


def test_no_file_is_larger_than_its_bound(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "SHARD_BYTES", 64)
    tensors = {"e": torch.randn(13, 4), "scale": torch.tensor(3.0), "q": torch.randn(7, 2), "none": torch.zeros(0, 4)}
    with writing(storage, "weights", "step") as out:
        out.add(write_tensors(storage, "w.safetensors", tensors))
    files = read_manifest(storage).files
    assert [*files] == [f"w-{number:05d}.safetensors" for number in range(len(files))] and len(files) > 4
    header = max(entry["size"] for entry in files.values()) - 64
    assert header < 256
    back = read_tensors(storage, "w.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
