"""The nightly run with random models: the driver's memory by the number of users, and a run in which nothing changed.

    python -m benchmarks.nightly_scale
    python -m benchmarks.nightly_scale --users 10_000 --users 200_000 --llm-users 0

Memory is the driver process's alone (`jobs.nightly`, the teacher ranks): nothing on it may grow with the users. Then
a run that the LLM ranks is followed by one in which nothing has changed, in one process with Ray started before.
"""

import datetime
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.generated_run import write_run
from benchmarks.report import ROOT, Benchmark, Row
from jobs.config import Config
from jobs.nightly import nightly
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "nightly_scale"
ITEMS, USERS_PER_SHARD = 2000, 2500
DATE = datetime.date(2026, 11, 20)


def generated(work: Path, users: int, shards: int, hidden: int = 32, layers: int = 1, **nightly: Any) -> Config:
    """A workspace of its own, written again."""
    root = work / f"users-{users}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    config = Config(
        name="run",
        root=str(root),
        data={"num_shards": shards},
        teacher={"dim": 32},
        alignment={"joint_dim": 32},
        llm={"name": str(root / "llm")},
        text={"model": str(root / "encoder")},
        nightly=nightly,
    )
    write_run(config, users, ITEMS, hidden, layers)
    return config


def driver(config: Config) -> Row:
    """A run by the teacher in a process of its own; the most that this one process held, in MB."""
    path = Path(config.root) / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.nightly", "--config", str(path), "--date", str(DATE), "--log-json"]
    started, most = time.monotonic(), 0.0
    with path.with_name("nightly.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while process.poll() is None:
            most = max(most, _high_water(process.pid))
            time.sleep(0.2)
    if process.returncode:
        raise ValueError(f"the nightly run ended with code {process.returncode}; see {log.name}")
    return {"seconds": time.monotonic() - started, "MB driver": most}


def two_runs(config: Config) -> list[Row]:
    """A first run, and one in which nothing has changed."""
    start_ray(config)
    rows = []
    for day in range(2):
        date, started = DATE + datetime.timedelta(days=day), time.monotonic()
        nightly(config, Console(log_json=True), date)
        report = config.workspace.recommendations.read(f"_reports/run_date={date}/report.json")
        figures = yaml.safe_load(report)["figures"]
        counts = {name: figures[name] for name in ("scored_by_llm", "reused", "tokens")}
        rows.append({"seconds": time.monotonic() - started, **counts})
    return rows


def _high_water(pid: int) -> float:
    """The most that a process ever held, in MB (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return max((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), default=0)


def main(
    users: Annotated[list[int] | None, typer.Option(help="of the memory's runs; quick: 200 and 400")] = None,
    llm_users: Annotated[int, typer.Option(help="users that the LLM ranks; 0: none; quick: 40")] = 400,
    hidden: Annotated[int, typer.Option(help="of the LLM, a multiple of 8")] = 512,
    layers: Annotated[int, typer.Option(help="of the LLM")] = 8,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Runs with random models: memory of the driver, and reused rows."""
    sizes = sorted(users or ([200, 400] if quick else [10_000, 200_000]))
    llm_users, hidden, layers = (min(llm_users, 40), 32, 1) if quick else (llm_users, hidden, layers)
    settings = {"users": sizes, "llm_users": llm_users, "hidden": hidden, "layers": layers, "items": ITEMS}
    benchmark = Benchmark(NAME, Console(log_json), settings, root, quick, repeat="trial")
    work = (root / NAME).absolute()
    with errors_in_one_line():
        for size in sizes:
            shards = max(4, size // USERS_PER_SHARD)
            numbers = driver(generated(work, size, shards, ranker="teacher"))
            benchmark.measured({"what": "teacher", "users": size}, numbers)
        if llm_users:
            rows = two_runs(generated(work, llm_users, 4, hidden, layers))
            for which, numbers in zip(("first run", "second run"), rows, strict=True):
                benchmark.measured({"what": which, "users": llm_users}, numbers)
            benchmark.at_most("seconds: unchanged / first run", rows[1]["seconds"] / rows[0]["seconds"], 0.1)
    if len(sizes) > 1:
        memory = [benchmark.mean("MB driver", what="teacher", users=size) for size in sizes]
        benchmark.at_most(f"MB of the driver: {sizes[-1]:,} / {sizes[0]:,} users", memory[-1] / memory[0], 1.1)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
