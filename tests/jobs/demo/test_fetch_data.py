import json
from importlib.resources import files

import pytest

from jobs.demo.fetch_data import fetch_data, remote_files
from jobs.runtime.console import Console
from tests.demo.test_public_data import DATA, serving


def test_the_table_is_sound():
    table = json.loads((files("jobs") / "configs" / "public-data.json").read_text())
    for name, entry in table.items():
        remotes = remote_files(f"{name}/{entry['example']}" if "example" in entry else name)
        assert remotes and all(remote.url.startswith("https://") and "{" not in remote.url for remote in remotes)
        assert len({remote.name for remote in remotes}) == len(remotes)


def test_names_that_are_none_are_named():
    with pytest.raises(ValueError, match=r"no data set 'netflix'; known: movielens-1m, .*amazon-2014/PART"):
        remote_files("netflix")
    with pytest.raises(ValueError, match="amazon-2014 has parts: ask for amazon-2014/Beauty"):
        remote_files("amazon-2014")
    with pytest.raises(ValueError, match="movielens-1m has no parts"):
        remote_files("movielens-1m/Beauty")


def test_files_are_fetched_and_told(tmp_path, monkeypatch, capsys):
    with serving() as (url, _):
        table = tmp_path / "configs" / "public-data.json"
        table.parent.mkdir()
        table.write_text(json.dumps({"shop": {"example": "data", "files": [{"url": url.replace("data", "{part}")}]}}))
        monkeypatch.setattr("jobs.demo.fetch_data.files", lambda _: tmp_path)
        for event in ("fetched", "exists already"):
            (path,) = fetch_data("shop/data", tmp_path / "to", Console(log_json=True))
            assert json.loads(capsys.readouterr().out)["event"] == event
    assert path.read_bytes() == DATA
