"""Every benchmark prints a table and the bars, and keeps them with the machine and the versions as JSON."""

import json

import pytest

from benchmarks.report import Benchmark
from jobs.runtime.console import Console


def finished(tmp_path, quick: bool) -> dict:
    benchmark = Benchmark("sorting", Console(), {"rows": 10}, tmp_path, quick)
    for seed, seconds in enumerate([1.0, 3.0]):
        benchmark.measured({"method": "ours", "seed": seed}, {"seconds": seconds})
    benchmark.measured({"method": "theirs", "seed": 0}, {"seconds": 8.0, "passes": 2})
    ours, theirs = (benchmark.mean("seconds", method=method) for method in ("ours", "theirs"))
    benchmark.at_least("theirs / ours", theirs / ours, 4)
    benchmark.at_least("theirs / ours, high", theirs / ours, 5)
    benchmark.at_most("seconds", ours, 2)
    benchmark.at_most("seconds, low", ours, 1.5)
    return json.loads(benchmark.finish().read_text())


def test_measurements_and_bars_are_kept_with_the_machine_and_the_versions(tmp_path):
    content = finished(tmp_path, quick=False)
    assert content["benchmark"] == "sorting" and content["settings"] == {"rows": 10} and not content["quick"]
    assert content["measurements"][0] == {"method": "ours", "seed": 0, "seconds": 1.0}
    assert content["measurements"][2]["passes"] == 2
    assert [set(bar) for bar in content["bars"]] == [{"name", "value", "bar", "holds"}] * 4
    assert [bar["holds"] for bar in content["bars"]] == [True, False, True, False]
    assert content["bars"][0]["value"] == 4.0
    assert content["machine"]["cores"] >= 1 and content["machine"]["memory_gib"] > 0
    assert set(content["machine"]) == {"cores", "memory_gib", "cpu", "platform"}
    assert {"python", "torch", "ray", "numpy"} <= set(content["versions"])


def test_a_quick_run_judges_no_bar(tmp_path):
    assert [bar["holds"] for bar in finished(tmp_path, quick=True)["bars"]] == [None] * 4


def test_the_table_has_every_measurement_and_the_mean_of_repetitions(tmp_path, capsys: pytest.CaptureFixture[str]):
    finished(tmp_path, quick=False)
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("│")]
    assert len(table) == 4 and "mean ± sd" in table[3] and "2 ± 1.4" in table[3]
    assert "theirs / ours, high" in printed and "FAILS" in printed and "holds" in printed
