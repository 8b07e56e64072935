"""A folder is filled once, however many processes ask at the same time, and again where one was killed at it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import pytest

from allmrec.core import machine_cache
from allmrec.core.machine_cache import filled_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path)
    return tmp_path


def test_of_processes_that_ask_at_once_one_fills_it_and_all_get_it_whole() -> None:
    filled = []

    def fill(draft: Path) -> None:
        filled.append(draft)
        for name in ("a", "b"):
            (draft / name).touch()
            sleep(0.01)

    def ask(_: int) -> list[str]:
        return sorted(path.name for path in filled_folder("bundles", "v1.0", fill).iterdir())

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(ask, range(8))] == [["a", "b"]] * 8
    assert len(filled) == 1
    filled_folder("bundles", "v2.0", fill)
    assert len(filled) == 2, "another key is another folder"


def test_what_a_killed_process_has_left_is_filled_again(cache: Path) -> None:
    def killed(draft: Path) -> None:
        (draft / "half").write_bytes(b"ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled_folder("models", "key", killed)
    assert not (cache / "models/key").exists()
    folder = filled_folder("models", "key", lambda draft: (draft / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"] and not (cache / "models/key.draft").exists()
