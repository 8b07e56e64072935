"""A nightly run outlives a shard that fails; one that fails again is named, and what was done is kept."""

import json
from pathlib import Path

import pytest
import torch

from allmrec.nightly import score
from allmrec.publishing.reader import read_recommendations
from jobs.nightly import nightly
from jobs.runtime.console import Console
from tests.evaluation.tiny import NUM_USERS
from tests.jobs.test_nightly import DATE, with_nightly


@pytest.mark.usefixtures("in_process")
def test_a_run_outlives_a_bad_shard(tiny_workspace, tmp_path: Path, monkeypatch, capsys) -> None:
    scored, seen = score.ScoreShards.recommendations, list[int]()

    def refusing(self, users, *rest):
        if len(users) and users.user_ids[0].as_py() == victim and len(seen) < attempts:
            seen.append(1)
            raise torch.OutOfMemoryError("no memory for one prompt")
        return scored(self, users, *rest)

    config = with_nightly(tiny_workspace[0], output=str(tmp_path / "out"), ranker="teacher")
    nightly(config, Console(log_json=True), DATE)
    rows = read_recommendations(str(tmp_path / "out"))
    victim = rows.column("user_id")[0].as_py()
    monkeypatch.setattr(score.ScoreShards, "recommendations", refusing)
    attempts, again = 1, with_nightly(config, output=str(tmp_path / "again"))
    capsys.readouterr()
    nightly(again, Console(log_json=True), DATE)
    assert len(seen) == 1 and '"a shard failed, and is tried again"' in capsys.readouterr().out
    assert read_recommendations(str(tmp_path / "again")).column("items").equals(rows.column("items"))

    attempts, bad = 9, with_nightly(config, output=str(tmp_path / "bad"))
    with pytest.raises(ValueError, match=r"^shard \d on .*: OutOfMemoryError: no memory for one prompt"):
        nightly(bad, Console(log_json=True), DATE)
    done = [path for path in (tmp_path / "bad").rglob("shards/*.json") if json.loads(path.read_bytes())]
    assert len(seen) == 3 and len(done) == 2, "the others are kept"
    monkeypatch.undo()
    nightly(bad, Console(log_json=True), DATE)
    assert len(read_recommendations(str(tmp_path / "bad"))) == NUM_USERS
