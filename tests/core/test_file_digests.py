"""Digests of large files: bounded memory, one reading for many calls, and every change is noticed."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from allmrec.core import file_digests
from allmrec.core.file_digests import file_sha256
from allmrec.core.pretrained import model_identity
from tests.own_process import traced

SIZE = 3 * 2**20


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache" / "file_digests.json"
    monkeypatch.setattr(file_digests, "_CACHE", cache)
    monkeypatch.setattr(file_digests, "_known", {})
    monkeypatch.setattr(file_digests, "_SETTLED_NS", 0)
    return cache


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(SIZE))
    return folder


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    found: list[str] = []
    read = file_digests._read
    monkeypatch.setattr(file_digests, "_read", lambda path: (found.append(path.name), read(path))[1])
    return found


def test_identity_is_the_fingerprint_of_the_files_digests(model: Path) -> None:
    """Golden: steps that are done are skipped as long as this value is the same."""
    assert model_identity(str(model)) == "5cbf475772d2cbd0095fe666a777d8eb699ca7387dde280ccc0b2f4b4cb3a6fc"
    assert file_sha256(model / "model.safetensors") == hashlib.sha256(bytes(SIZE)).hexdigest()


def identity_with(cache: Path, model: Path) -> str:
    cache.unlink(missing_ok=True)
    file_digests._CACHE, file_digests._known = cache, {}
    return model_identity(str(model))


def test_memory_is_bounded(model: Path, own_cache: Path) -> None:
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(256 * 2**20)  # sparse
    _, peak, _ = traced(identity_with, own_cache, model)
    assert peak < 8 * 2**20


def test_weights_are_read_once_by_a_process_and_by_those_after_it(
    model: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model_identity(str(model))
    assert [model_identity(str(model)) for _ in range(5)] == [first] * 5
    monkeypatch.setattr(file_digests, "_known", {})  # as in another process
    assert model_identity(str(model)) == first
    assert readings.count("model.safetensors") == 1


def test_a_change_is_noticed_even_with_the_same_size_and_time(model: Path) -> None:
    weights = model / "model.safetensors"
    first, before = model_identity(str(model)), weights.stat()
    weights.write_bytes(b"\1" + bytes(SIZE - 1))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size and weights.stat().st_mtime_ns == before.st_mtime_ns
    assert model_identity(str(model)) != first
    weights.write_bytes(bytes(SIZE))
    assert model_identity(str(model)) == first


def test_a_file_that_has_just_changed_is_read_again(
    model: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second change within the clock's resolution would go unnoticed."""
    monkeypatch.setattr(file_digests, "_SETTLED_NS", 60 * 10**9)
    assert model_identity(str(model)) == model_identity(str(model))
    assert readings.count("model.safetensors") == 2


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 1}', '{"a": [1, 2, 3, 4]}', "\udcff"])
def test_a_damaged_or_unwritable_cache_only_costs_time(model: Path, own_cache: Path, damage: str) -> None:
    own_cache.parent.mkdir()
    own_cache.write_bytes(damage.encode(errors="surrogateescape"))
    expected = hashlib.sha256(bytes(SIZE)).hexdigest()
    assert file_sha256(model / "model.safetensors") == expected
    own_cache.unlink()
    own_cache.parent.rmdir()
    own_cache.parent.write_text("a file where the folder should be")
    file_digests._known.clear()
    assert file_sha256(model / "model.safetensors") == expected


def test_the_model_folder_is_untouched_and_files_that_are_gone_are_dropped(model: Path, own_cache: Path) -> None:
    before = sorted(model.iterdir())
    file_sha256(model / "model.safetensors")
    assert sorted(model.iterdir()) == before
    (model / "model.safetensors").rename(model / "other.safetensors")
    file_sha256(model / "other.safetensors")
    assert list(json.loads(own_cache.read_text())) == [str((model / "other.safetensors").resolve())]
