"""What every benchmark prints and keeps: a table of measurements, the bars, and `runs/benchmarks/NAME.json`.

Knows nothing of what is measured. A measurement has labels (what was measured) and numbers; measurements whose labels
differ in `repeat` alone (the seed, the trial) are repetitions, and the table shows their mean ± standard deviation.
"""

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jobs.runtime.console import Console

ROOT = Path("runs/benchmarks")
_PACKAGES = (
    "torch",
    "ray",
    "numpy",
    "pyarrow",
    "polars",
    "transformers",
    "deepspeed",
    "sentence-transformers",
    "duckdb",
)
WIDTH = 160  # of the table where output is no terminal; a narrow terminal wraps it rather than lose digits

Row = dict[str, Any]


@dataclass
class Benchmark:
    """Collects a benchmark's measurements and bars, and says each as it comes; `finish` writes them all."""

    name: str
    console: Console
    settings: Row  # the command's options
    root: Path = ROOT
    quick: bool = False  # sizes too small to judge by: bars are reported, but neither hold nor fail
    repeat: str = "seed"
    measurements: list[tuple[Row, Row]] = field(default_factory=list)
    bars: list[Row] = field(default_factory=list)

    def measured(self, labels: Row, numbers: Row) -> None:
        self.measurements.append((labels, numbers))
        self.console.event("measured", **labels, **numbers)

    def mean(self, number: str, **labels: Any) -> float:
        """Of a number over the measurements that carry these labels."""
        return fmean(numbers[number] for have, numbers in self.measurements if labels.items() <= have.items())

    def at_least(self, name: str, value: float, bar: float) -> None:
        self.bars.append({"name": name, "value": value, "bar": bar, "holds": None if self.quick else value >= bar})

    def at_most(self, name: str, value: float, bar: float) -> None:
        self.bars.append({"name": name, "value": value, "bar": bar, "holds": None if self.quick else value <= bar})

    def finish(self) -> Path:
        """Print the table and the bars, and `write`."""
        columns = list(dict.fromkeys(key for labels, numbers in self.measurements for key in (*labels, *numbers)))
        rows = [labels | numbers for labels, numbers in self.measurements] + self._means()
        self.console.rich.width = max(self.console.rich.width, WIDTH)
        self.console.table(self.name, columns, [[row.get(column, "") for column in columns] for row in rows])
        for bar in self.bars:
            verdict = {True: "holds", False: "FAILS", None: "not judged at this size"}[bar["holds"]]
            self.console.event(bar["name"], value=bar["value"], bar=bar["bar"], verdict=verdict)
        return self.write()

    def write(self) -> Path:
        """Write the JSON file and return its path."""
        path = self.root / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content(), indent=1, default=str))
        self.console.event("written", path=path)
        return path

    def content(self) -> Row:
        return {
            "benchmark": self.name,
            "quick": self.quick,
            "settings": self.settings,
            "machine": machine(),
            "versions": versions(),
            "measurements": [labels | numbers for labels, numbers in self.measurements],
            "bars": self.bars,
        }

    def _means(self) -> list[Row]:
        groups: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
        for labels, numbers in self.measurements:
            same = tuple(item for item in labels.items() if item[0] != self.repeat)
            groups.setdefault(same, []).append(numbers)
        return [
            dict(labels) | {self.repeat: "mean ± sd"} | {name: _spread([row[name] for row in rows]) for name in rows[0]}
            for labels, rows in groups.items()
            if len(rows) > 1
        ]


def machine() -> Row:
    """Cores that this process may use, memory in GiB, CPU model and platform."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "cpu": _cpu_model(),
        "platform": platform.platform(),
    }


def versions() -> Row:
    """Of Python and of the packages whose speed is measured, those that are installed."""
    installed = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def _spread(values: list[float]) -> str:
    digits = ".0f" if fmean(values) >= 100 else ".4g"
    return f"{fmean(values):,{digits}} ± {stdev(values):{'.0f' if digits == '.0f' else '.2g'}}"
