"""Stage-2's benchmarks at a small size: the reference implementation and every placement have our losses."""

import json

import pytest
import ray
import typer
from typer.testing import CliRunner

from benchmarks import placement, projection

pytestmark = pytest.mark.benchmark


def run(main, root) -> dict[str, float]:
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--quick", "--root", str(root)], catch_exceptions=False)
    ray.shutdown()
    assert result.exit_code == 0, result.output
    (path,) = root.glob("*.json")
    return {bar["name"]: bar["value"] for bar in json.loads(path.read_text())["bars"]}


def test_beside_the_reference_implementation(tmp_path):
    bars = run(projection.main, tmp_path)
    assert bars["difference of the first losses"] < 1e-4
    assert bars["padding of ours, %"] < 5


def test_placements(tmp_path):
    bars = run(placement.main, tmp_path)
    assert all(value < 1e-4 for name, value in bars.items() if "losses" in name) and len(bars) == 5
