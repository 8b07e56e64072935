"""The teachers' benchmark: measures equal brute force, and the whole command runs on a small store."""

import json

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
import typer
from typer.testing import CliRunner

from allmrec.cf.teacher import Teacher
from allmrec.data.cases import Cases
from allmrec.data.sequences import Sequences
from benchmarks.teachers import main, measured
from tests.cf.conftest import ragged

NUM_ITEMS, NUM_USERS = 40, 60


class Newest(Teacher):
    """A user is the newest item; small integers, so that ties abound."""

    def __init__(self):
        super().__init__()
        self.table = torch.randint(-1, 2, (NUM_ITEMS + 1, 2), generator=torch.Generator().manual_seed(1)).float()
        self.table[0] = 0

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.table

    def represent(self, histories: Sequences) -> torch.Tensor:
        return self.table[torch.from_numpy(histories.items[histories.offsets[1:] - 1]).long()]


def test_measures_equal_brute_force():
    rng = np.random.default_rng(0)
    teacher = Newest()
    drawn = np.stack([rng.permutation(NUM_ITEMS)[:12] + 1 for _ in range(NUM_USERS)])
    histories, candidates = drawn[:, :4], drawn[:, 4:]
    ones = np.ones(NUM_USERS, dtype=bool)
    users = ragged(histories.tolist())
    cases = Cases(pa.array(users.user_ids), users, candidates.astype(np.int32), ones, ones)
    x = teacher.represent(users)
    full, recall = [], []
    for user in range(NUM_USERS):
        score = (teacher.item_embeddings @ x[user]).tolist()
        others = set(range(1, NUM_ITEMS + 1)) - set(histories[user]) - {candidates[user, 0]}
        target = score[candidates[user, 0]]
        better, tied = sum(score[i] > target for i in others), sum(score[i] == target for i in others)
        ranks = range(better + 1, better + tied + 2)
        full.append(np.mean([1 / np.log2(rank + 1) if rank <= 10 else 0 for rank in ranks]))
        recall.append(np.mean([rank <= 20 for rank in ranks]))
    numbers = measured(teacher, cases, np.arange(1, NUM_ITEMS + 1))
    assert numbers["full ndcg@10"] == pytest.approx(np.mean(full))
    assert numbers["recall@20"] == pytest.approx(np.mean(recall))
    assert 0 < numbers["hit@1"] < numbers["ndcg@10"] < 1


def command(*arguments: str):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.parametrize("arguments", [("--models", "svd"), ("--presets", "weak"), ("--workspace", "nowhere")])
def test_what_a_user_gets_wrong_is_one_line(arguments, tmp_path):
    result = command("--quick", "--root", str(tmp_path), *arguments)
    assert result.exit_code == 2 and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.benchmark
def test_quick(tmp_path):
    result = command("--quick", "--presets", "paper,strong", "--root", str(tmp_path))
    ray.shutdown()
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "teachers.json").read_text())
    presets = [measurement["preset"] for measurement in content["measurements"]]
    assert presets == ["classic", "strong, 2 epochs", "paper", "strong"]
    for measurement in content["measurements"]:
        assert measurement["interactions/s"] > 0 and 0 < measurement["recall@20"] <= 1
    assert [bar["holds"] for bar in content["bars"]] == [None, None, None]
