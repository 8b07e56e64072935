"""What the nightly run's ranking costs and is worth, beside the other ways to have an LLM choose among candidates.

    python -m benchmarks.nightly --workspace runs/demo

One LLM, one bundle, one process and the same users, those of the run's stored test cases with random negatives:

    trie ranking         as the nightly run and the evaluation do it: one pass, logits at branching nodes
    title likelihood     every whole title as a branch behind the prompt, one pass
    constrained decoding greedy, token by token along the candidate trie
    free generation      greedy, as the paper does it; a text that is no candidate's title names no candidate
    generate()           the same by transformers' own method: four prompts at once (paper section 5.1), as they come
    LLM-SRec             the product of a vector that the LLM reads off the history and those of 200 candidates
    ..., ten by beams    and for a list of ten titles as a run publishes, where one text names one title
    the layers alone     the LLM's layers on trie ranking's tokens and nothing else: no choice, only the rate

All but generate() are batched by length under the same token budget; all that decode keep a KV cache. Seconds hold
x_u, prompts and scores; loading and the first batch are outside of them. Without a GPU they are seconds of CPU time,
so that other jobs on the machine do not count. Then the real nightly job runs on Ray and publishes to S3 (moto, over
HTTP), by the wall clock, and where there is a GPU an OPT-6.7B of random weights does the same users, measured against
the GPU's own matmul.
"""

import datetime
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import ray
import torch
import typer

from allmrec.bundle.loading import load_bundle
from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import read_table
from allmrec.core.storage import open_storage
from allmrec.core.workspace import open_workspace
from allmrec.data.cases import Cases
from allmrec.data.sequences import Sequences
from allmrec.model import ALLMRec
from benchmarks.clock import Stopwatch, now
from benchmarks.decoding_methods import FREE, GENERATE, LIKELIHOOD, LISTED, TRIE, Ways
from benchmarks.large_llm import as_large_as, opt_67b
from benchmarks.layers_alone import LAYERS, read_as_ranked
from benchmarks.readout_rates import READOUT_LAYERS, ReadoutRanking
from benchmarks.report import ROOT, Benchmark, Row
from jobs.config import Config
from jobs.demo.sample_data import sample_data
from jobs.nightly import nightly
from jobs.pipeline import TRAINING
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console, Phase
from jobs.runtime.step import execute, load_step

NAME, LARGE = "nightly", "OPT-6.7B"
FULL: Row = {"users": 500, "trials": 3}
QUICK: Row = {"users": 24, "trials": 1}
DATE = datetime.date(2026, 1, 1)


def compare(benchmark: Benchmark, model: ALLMRec, cases: Cases, seed: int, trials: int) -> None:
    """Every way on the same cases, one after another in each trial."""
    ways, readout, watch = Ways(model, seed), ReadoutRanking(model, seed), Stopwatch(model.llm)
    by_name = ways.by_name | {readout.name: readout.rank}
    alone = {LAYERS: lambda: read_as_ranked(ways, cases), READOUT_LAYERS: lambda: readout.layers(cases)}
    for trial in range(trials):
        for name, way in by_name.items():
            if trial == 0:
                way(cases.take(np.arange(min(len(cases), 8))))
            with watch.running():
                started = now()
                chosen = way(cases)
                seconds = now() - started
            numbers = {
                "users/s": len(cases) / seconds,
                "tokens/s": chosen.tokens / seconds,
                "tokens a user": chosen.tokens / len(cases),
                "passes": watch.passes,
                "padding %": 100 * chosen.padding / (chosen.tokens + chosen.padding),
                "in the LLM %": 100 * watch.seconds / seconds,
                "hit@1": float(chosen.hit_B.mean()),
                "stderr": float(chosen.hit_B.std() / np.sqrt(len(cases))),
                "named no candidate %": 100 * chosen.unnamed / len(cases),
            }
            benchmark.measured({"way": name, "trial": trial}, numbers)
        for name, layers in alone.items():
            started = now()
            tokens = layers()
            seconds = now() - started
            benchmark.measured(
                {"way": name, "trial": trial}, {"users/s": len(cases) / seconds, "tokens/s": tokens / seconds}
            )

    benchmark.at_least(f"users/s: {TRIE} / {LAYERS}", fastest(benchmark, TRIE) / fastest(benchmark, LAYERS), 0.95)
    judge_speed(benchmark, TRIE, FREE, GENERATE, LISTED)
    likelihood, trie = (fastest(benchmark, name) for name in (LIKELIHOOD, TRIE))
    benchmark.at_least("users/s: trie ranking / title likelihood", trie / likelihood, 1)
    judge_readout(benchmark, readout.name)
    hits = {name: benchmark.mean("hit@1", way=name) for name in ways.by_name}
    benchmark.at_least("hit@1: trie ranking - free generation", hits[TRIE] - hits[FREE], 0)
    benchmark.at_least("hit@1: trie ranking - title likelihood", hits[TRIE] - hits[LIKELIHOOD], -0.01)
    benchmark.at_most("padding %, trie ranking", benchmark.mean("padding %", way=TRIE), 5)


def judge_speed(benchmark: Benchmark, trie: str, *others: str) -> None:
    """Five times the speed of generation."""
    for other in others:
        benchmark.at_least(f"users/s: {trie} / {other}", fastest(benchmark, trie) / fastest(benchmark, other), 5)


def judge_readout(benchmark: Benchmark, name: str) -> None:
    """Two and a half times the speed of trie ranking of 20, and hardly more than the LLM's layers take."""
    rate = fastest(benchmark, name)
    benchmark.at_least(f"users/s: {name} / {TRIE}", rate / fastest(benchmark, TRIE), 2.5)
    benchmark.at_least(f"users/s: {name} / {READOUT_LAYERS}", rate / fastest(benchmark, READOUT_LAYERS), 0.95)


def fastest(benchmark: Benchmark, way: str) -> float:
    """Users/s of the best trial: whatever disturbs only slows down."""
    return max(numbers["users/s"] for labels, numbers in benchmark.measurements if labels["way"] == way)


class Recorder(Console):
    """Keeps the numbers that the last phase closed with."""

    last: Phase

    @contextmanager
    def phase(self, verb: str) -> Iterator[Phase]:
        with super().phase(verb) as self.last:
            yield self.last


def end_to_end(benchmark: Benchmark, folder: Path, model: ALLMRec, seed: int, workers: int) -> None:
    """The nightly job of the whole run, published to a store that speaks S3 over HTTP."""
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ |= {name: "test" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if name not in os.environ}
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request, else
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=NAME)
    config = Config(
        name=folder.name,
        root=str(folder.parent),
        seed=seed,
        llm=model.config,
        nightly={"output": f"s3://{NAME}/recommendations"},
        workers={"num_workers": workers},
        storage={"endpoint_url": endpoint, "region": "us-east-1", "addressing_style": "path"},
    )
    users = len(Sequences.read(open_workspace(str(folder)).sequences))
    console, started = Recorder(benchmark.console.log_json), time.perf_counter()
    nightly(config, console, DATE)
    seconds = time.perf_counter() - started
    stats = console.last.numbers
    worker_seconds, ranking = (stats[what] / stats[f"{what}/s of a worker"] for what in ("users", "tokens"))
    numbers = {
        "users/s": users / seconds,
        "tokens/s": stats["tokens"] / seconds,
        "padding %": stats["padding %"],
        "ranking % of workers' time": 100 * ranking / worker_seconds,
    }
    benchmark.measured({"way": f"nightly job, {workers} workers", "trial": 0}, numbers)
    benchmark.at_least("nightly job: ranking / workers' time", ranking / worker_seconds, 0.9)
    ray.shutdown()
    server.stop()


def small_workspace(root: Path, console: Console) -> Path:
    """A generated shop, stand-ins that were hardly trained, and all that the nightly run needs: its folder."""
    folder = root / "sample"
    if not (folder / "input/movies/items.parquet").exists():
        sample_data(str(folder / "input"), users=60, items=60)
    config = Config(
        name=folder.name,
        root=str(root),
        data={
            "interactions": {"paths": [str(folder / "input/movies/interactions.parquet")]},
            "items": {"paths": [str(folder / "input/movies/items.parquet")]},
            "num_shards": 2,
        },
        text={"model": str(folder / "models/encoder")},
        llm={"name": str(folder / "models/llm")},
        teacher={"epochs": 1, "dim": 16},
        alignment={"epochs": 1, "joint_dim": 16},
        prompt={"max_history": 3},
        projection={"epochs": 1, "batch_size": 32, "num_candidates": 6},
        evaluation={"num_negatives": 5},
        workers={"num_workers": 1},
    )
    first, *training = TRAINING
    for module in (first, "standin_encoder", "standin_llm", *training):
        execute(load_step(f"jobs.{module}"), config, console)
    ray.shutdown()
    return folder


def stored_cases(folder: Path, users: int) -> Cases:
    """The test cases with random negatives of the first users."""
    workspace = open_workspace(str(folder))
    cases = Cases.select(read_table(workspace.evaluation_cases), Sequences.read(workspace.sequences), "test", "random")
    return cases.take(np.arange(min(users, len(cases))))


def main(
    workspace: Annotated[
        Path | None, typer.Option(help="a workspace with a bundle; default: a small generated one")
    ] = None,
    users: Annotated[int | None, typer.Option(help="test cases to score; default: 500; quick: 24")] = None,
    trials: Annotated[int | None, typer.Option(help="of every way; default: 3; quick: 1")] = None,
    workers: Annotated[int, typer.Option(help="of the nightly job")] = 2,
    job: Annotated[bool, typer.Option(help="run the nightly job on S3, too")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Rank, score, constrain and generate with the same LLM for the same users; then the nightly job itself."""
    given = {"users": users, "trials": trials}
    plan = (QUICK if quick else FULL) | {name: value for name, value in given.items() if value is not None}
    console = Console(log_json)
    benchmark = Benchmark(
        NAME, console, {"workspace": workspace, "workers": workers, **plan}, root, quick, repeat="trial"
    )
    with errors_in_one_line():
        folder = workspace or small_workspace(root / NAME, console)
        storage = open_storage(str(folder))
        bundle = load_bundle(storage, latest_bundle(storage))
        seed, model = int(bundle.config["seed"]), ALLMRec(bundle, bundle.llm)
        cases = stored_cases(folder, plan["users"])
        compare(benchmark, model, cases, seed, plan["trials"])
        if job:
            end_to_end(benchmark, folder, model, seed, workers)
        if torch.cuda.is_available():
            share = as_large_as(benchmark, LARGE, opt_67b(), model, cases, seed, plan["trials"])
            judge_speed(benchmark, *(f"{way}, {LARGE}" for way in (TRIE, FREE, GENERATE)))
            benchmark.at_least(f"MFU, {LARGE}: {TRIE} / the GPU's matmul", share, 0.6)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
