from pathlib import Path

import pytest
import torch

from allmrec.core import file_digests, machine_cache, rows, tensor_files
from allmrec.core.artifacts import find_manifest, read_manifest, writing
from allmrec.core.rows import whole
from allmrec.core.storage import LocalStorage, Storage
from allmrec.core.tensor_files import read_tables, read_tensors, write_tensors


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


@pytest.fixture
def mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's cache, where tensors of more than 100 bytes are mapped."""
    monkeypatch.setattr(rows, "MAPPED_BYTES", 100)
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(file_digests, "_CACHE", tmp_path / "digests.json")
    return tmp_path / "cache"


@pytest.mark.parametrize("files", [1, 4])
def test_mapped_tensors_are_those_that_were_written(
    storage: Storage, mapped: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    tensors = {"e": torch.randn(31, 4), "scale": torch.tensor(3.0), "count": torch.arange(7)}
    if files > 1:
        monkeypatch.setattr(tensor_files, "SHARD_BYTES", 160)
    with writing(storage, "weights", "step") as out:
        out.add(write_tensors(storage, "w.safetensors", tensors))
    assert len(read_manifest(storage).files) == files
    table, index = read_tables(storage, "w.safetensors")["e"], torch.tensor([30, 0, 10, 9])
    assert torch.equal(table[index], tensors["e"][index]) and torch.equal(whole(table), tensors["e"])
    assert len([*mapped.glob("tables/*/data")]) == (0 if isinstance(storage, LocalStorage) else files)
    back = read_tensors(storage, "w.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    back["e"][5] = 0
    assert torch.equal(read_tensors(storage, "w.safetensors")["e"], tensors["e"]), "what one writes is its own"
    copied = [*mapped.glob("tables/*/data")]
    assert len(copied) == (files > 1) + (0 if isinstance(storage, LocalStorage) else files)


def test_a_damaged_file_is_not_mapped(storage: Storage, mapped: Path) -> None:
    with writing(storage, "weights", "step") as out:
        out.add(write_tensors(storage, "w.safetensors", {"e": torch.randn(31, 4)}))
    good = storage.read("w.safetensors")
    storage.write("w.safetensors", good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged"):
        read_tensors(storage, "w.safetensors")
    storage.write("w.safetensors", good)
    read_tensors(storage, "w.safetensors")
    storage.delete("w.safetensors")
    if isinstance(storage, LocalStorage):
        with pytest.raises(ValueError, match=r"w\.safetensors is missing"):
            read_tensors(storage, "w.safetensors")
    for file in mapped.glob("tables/*/data"):
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ValueError, match="data is damaged"):
            read_tensors(storage, "w.safetensors")
