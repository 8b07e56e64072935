"""The learning benchmark on a tiny workspace: what it trains, measures and probes."""

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from benchmarks.learning import BEGINNING, VARIANTS, main
from jobs.config import load_config


@pytest.fixture
def config_file(tiny_bundle, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(tiny_bundle[0].model_dump_json(exclude_none=True))  # JSON is YAML
    return path


def measured(config_file, root, *options) -> list[dict]:
    app = typer.Typer()
    app.command()(main)
    small = ["--set", "projection.num_candidates=6", "--set", "prompt.max_history=3", "--set", "llm.dtype=float32"]
    arguments = ["--config", str(config_file), *small, "--users", "20", "--threads", "1", "--root", str(root), *options]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads((root / "learning.json").read_text())["measurements"]


def test_each_variant_has_one_budget_and_its_curve(config_file, tmp_path):
    names = ["paper", "before-distilled"]
    rows = measured(config_file, tmp_path, "--prompts", "16", "--every", "8", "--variants", ",".join(names))
    assert [row["variant"] for row in rows] == names
    for row in rows:
        curve = [float(hit) for hit in row["curve"].split()]
        assert len(curve) >= 3 and curve[-1] == pytest.approx(row["Hit@1"], abs=1e-3)
        assert 0 < row["about which, %"] < 100 and row["candidates gradient"] > 0
        assert 0 <= row["another token moves"] <= 1 and np.isfinite(row["calibrated Hit@1"])


def test_the_probe_asks_both_prompts(config_file, tmp_path):
    rows = measured(config_file, tmp_path, "--probe")
    assert {row["slots"] for row in rows} == {"behind", "before"}
    for slots in ("behind", "before"):
        by_name = {row["probe"]: row for row in rows if row["slots"] == slots}
        assert by_name["user's token has cosine 0.0 with the target's"]["P(target)"] > 0
        assert -1 <= by_name["the start's tokens"]["cosine with the target's"] <= 1
        assert 0 < by_name["the teacher"]["P(target)"] < 1
        assert "user's token is a mixture of the candidates', sharpness 10.0" in by_name
        for which in ("user's", "target's"):
            before, after = (by_name[f"{which} token after {steps} steps for its prompt"] for steps in (0, 20))
            assert after["P(target)"] > before["P(target)"]


def test_every_variant_is_a_config(config_file):
    text = config_file.read_text().replace('"slots":"behind"', '"slots":"before"').replace("ordinary", "teacher")
    config_file.write_text(text)  # what a variant does not name is not the config's
    configs = {name: load_config(config_file, [*BEGINNING, *keys]) for name, keys in VARIANTS.items()}
    assert len({config.model_dump_json() for config in configs.values()}) == len(VARIANTS)
    assert configs["paper"].projection.loss == "title" and configs["before"].prompt.slots == "before"
    assert configs["paper"].prompt.slots == "behind" and configs["before-ordinary"].projection.start == "ordinary"
