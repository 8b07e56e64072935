"""The workers of a machine share one copy of a bundle, which is read from the store and verified once."""

from pathlib import Path

import pytest
import torch

from allmrec.bundle import machine_copy as module
from allmrec.bundle.description import read_description
from allmrec.bundle.loading import load_bundle
from allmrec.bundle.machine_copy import machine_copy
from allmrec.core import artifacts, file_digests, machine_cache
from allmrec.core.rows import whole
from allmrec.core.storage import LocalStorage, Storage
from allmrec.core.workspace import Workspace


class Store(Storage):
    """A folder that is reached as if it were elsewhere, and counts what is read."""

    def __init__(self, inside: Storage, read: list[str]):
        self.inside, self.keys, self.uri = inside, read, inside.uri

    def at(self, key):
        return Store(self.inside.at(key), self.keys)

    def read(self, key):
        self.keys.append(key)
        return self.inside.read(key)

    def list(self, prefix=""):
        return self.inside.list(prefix)

    def exists(self, key):
        return self.inside.exists(key)

    write = create = copy = delete = arrow = lambda *_: pytest.fail("a bundle is read alone")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path)
    return tmp_path


def test_a_second_worker_reads_nothing_but_the_description(tiny_bundle, cache: Path) -> None:
    _, storage, version = tiny_bundle
    store = Store(storage, [])
    files = read_description(storage, version)["files"]
    first = load_bundle(store, version)
    assert sorted(store.keys) == sorted(["bundle.json", *files]), "every file once"
    store.keys.clear()
    second = load_bundle(store, version)
    assert store.keys == ["bundle.json"]
    assert second.items.equals(first.items) and torch.equal(whole(second.q_NJ), whole(first.q_NJ))
    folder = machine_copy(Workspace(store).bundles.at(version), read_description(storage, version))
    for name in files:
        assert folder.read(name) == storage.at(f"bundles/{version}").read(name)


def test_damage_on_the_way_is_named_and_the_next_worker_fetches_it_again(
    tiny_bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, storage, version = tiny_bundle
    store = Store(storage, [])
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="is damaged"):
        patch.setattr(module, "sha256", lambda data: "other")
        load_bundle(store, version)
    assert not [path for path in (cache / "bundles").iterdir() if path.is_dir() and path.suffix != ".draft"]
    assert load_bundle(store, version).version == version


def test_a_bundle_on_a_disk_is_not_copied_and_its_large_files_are_read_through_once(
    tiny_bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, storage, version = tiny_bundle
    monkeypatch.setattr(file_digests, "_CACHE", cache / "digests.json")
    monkeypatch.setattr(file_digests, "_SMALL_BYTES", 0)
    monkeypatch.setattr(file_digests, "_SETTLED_NS", 0)
    read, real = list[Path](), file_digests._read
    monkeypatch.setattr(file_digests, "_read", lambda path: read.append(path) or real(path))
    load_bundle(storage, version)
    assert len(read) == len(read_description(storage, version)["files"])
    monkeypatch.setattr(artifacts, "sha256", lambda data: pytest.fail("a part that is verified is not verified again"))
    load_bundle(storage, version)
    assert len(read) == len(read_description(storage, version)["files"]) and not (cache / "bundles").exists()
    assert isinstance(storage, LocalStorage) and not storage.is_verified
