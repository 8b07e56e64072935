"""The simulation of sizes: it says of what was measured what was measured, and grows as the work does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.scale import COSTS, Costs, Simulation, Size, checked, main

# Of docs/results.md and docs/cluster.md, two cores.
PREPARE = [(20_000_000, 28.7), (100_000_000, 119.5)]
VERBS = [("prepare", 2, 278, 940), ("prepare", 4, 285, 1050), ("embed", 2, 305, 580)]
VERBS += [
    ("train-cf", 2, 275, 3782),
    ("train-alignment", 2, 276, 2146),
    ("train-projection", 2, 281, 1593),
    ("nightly (teacher)", 2, 285, 2229),
]
MILLION = Size(1_000_000, 100_000, 1)


@pytest.fixture(scope="module")
def costs() -> Costs:
    return Costs.read(COSTS)


def test_what_was_measured_is_simulated_within_a_fifth(tmp_path: Path, costs: Costs) -> None:
    rows = [{"engine": "ours", "rows": rows, "seconds": seconds} for rows, seconds in PREPARE]
    others = [{"engine": "duckdb", "rows": 20_000_000, "seconds": 18.8}]
    nightly = {"what": "teacher", "users": 200_000, "seconds": 84}
    verbs = [
        {"verb": verb, "items": millions * 10**6, "MB driver": driver, "MB worker": worker}
        for verb, millions, driver, worker in VERBS
    ]
    found = []
    for settings, measurements in (
        ({"threads": 2}, rows + others),
        ({"items": 2000}, [nightly, {"what": "first run"}]),
        ({"users": 200_000, "text_dim": 64}, [*verbs, {"verb": "expire", "items": 2_000_000}]),
    ):
        path = tmp_path / "measured.json"
        path.write_text(json.dumps({"settings": settings, "measurements": measurements}))
        found += checked(path, costs)
    assert len(found) == 3 + 2 * len(VERBS)
    assert all(abs(ratio - 1) < 0.2 for _, ratio in found), found


def test_it_grows_as_the_work_does(costs: Costs) -> None:
    def verbs(**more: float) -> dict:
        return Simulation(replace(MILLION, **more), costs).verbs()

    one, twice, shared = verbs(), verbs(users=2_000_000), verbs(gpus=10)
    assert twice["first run"].seconds == pytest.approx(2 * one["first run"].seconds, rel=0.01)
    assert twice["train-projection"].seconds == one["train-projection"].seconds, "it trains on a sample"
    for verb, estimate in twice.items():
        grows = verb == "train-cf"  # up to its memory_mb
        assert estimate.driver_mb == one[verb].driver_mb and (grows or estimate.worker_mb == one[verb].worker_mb), verb
    assert shared["first run"].seconds == pytest.approx(one["first run"].seconds / 10, rel=0.01)
    large = verbs(users=100_000_000, items=10_000_000, gpus=100)
    assert large["prepare"].gets < 4 * 2000 * 2000, "of 2,000 pieces and shards"
    assert large["later run"].row(MILLION)["USD"] > 0
    assert large["first run"].mapped_mb > large["first run"].worker_mb and not one["first run"].mapped_mb


def test_costs_are_all_there_or_refused(tmp_path: Path) -> None:
    content = json.loads(COSTS.read_text())
    assert all(len(source) > 10 for _, source in content.values()), "each says where it is from"
    content.pop("driver_mb")
    (tmp_path / "costs.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="driver_mb missing or unknown"):
        Costs.read(tmp_path / "costs.json")


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--users", "1000", "--users", "100000000", "--root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "scale.json").read_text())["measurements"]
    assert [row["verb"] for row in rows[:7]] == [*Simulation(MILLION, Costs.read(COSTS)).verbs()] and len(rows) == 14
    assert rows[-1]["users"] == 100_000_000 and rows[-1]["hours"] == pytest.approx(2.234, abs=0.01)
