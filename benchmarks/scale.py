"""Simulates what each verb costs at a size: time, memory of each process, requests to the store, and money.

    python -m benchmarks.scale --users 100_000_000 --items 10_000_000 --gpus 100
    python -m benchmarks.scale --check runs/benchmarks/prepare.json --check runs/benchmarks/nightly_scale.json

The costs of a row, a user and an item, measured on two cores, are multiplied; `scale_costs.json` names the source of
each, and `--costs` takes another file. The LLM's cost is arithmetic: two operations per weight and token forward, as
many backward, and two bytes per weight on every GPU. CPU work is divided by the number of cores; the network costs no
time. `--check` compares the simulation with results of other benchmarks. Prices are options; those of requests are S3
Standard's list prices.
"""

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import typer

from allmrec.alignment.examples import example_bytes
from allmrec.alignment.network import AlignmentConfig
from allmrec.cf.teacher import TeacherConfig
from allmrec.core.rows import is_large
from allmrec.projection.examples import EXAMPLE_BYTES
from allmrec.projection.projectors import ProjectionConfig
from benchmarks.generated_log import ROWS_PER_ITEM
from benchmarks.report import ROOT, Benchmark, Row
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME, COSTS = "scale", Path(__file__).with_name("scale_costs.json")
USERS_PER_SHARD, ROWS_PER_PIECE, ITEMS_PER_FILE = 50_000, 1_000_000, 1 << 15
FAN_IN = 128  # parts that a task of the shuffle reads at most
PLAN_BYTES = 100  # of an item, in the task that plans what to embed
TEACHER_COPIES = 9  # of E in a worker: weights, gradient, moments, best weights, sums, and what a checkpoint copies
SIMULATED = {  # verbs of `benchmarks.verbs` by name → of the simulation
    **{verb: verb for verb in ("prepare", "embed", "train-cf", "train-alignment", "train-projection")},
    "nightly (teacher)": "first run",
}
GET_USD, PUT_USD = 0.4e-6, 5e-6
MIB = 2**20


@dataclass(frozen=True)
class Costs:
    start_s: float  # of a verb
    prepare_core_s_per_row: float
    embed_core_s_per_item: float
    teacher_core_s_per_interaction: float
    alignment_core_s_per_user: float
    nightly_core_s_per_user: float  # all but retrieval and the LLM
    retrieval_core_s_per_user_and_item: float
    driver_mb: float  # of any verb, whatever the size
    pass_mb: float  # of a worker of `prepare`, whatever the size
    process_mb: float  # of a worker with a model, without what is by item
    numbering_mb_per_item: float  # of the worker that numbers the items, at most
    alignment_mb_per_item: float  # beside the vectors: ids, counts, and what is made of all vectors part by part
    projection_mb_per_item: float  # ids, titles, counts; tables of vectors are mapped
    nightly_mb_per_item: float  # likewise, with the index of retrieval
    nightly_requests: float
    nightly_gets_per_shard: float
    nightly_puts_per_shard: float

    @classmethod
    def read(cls, path: Path) -> "Costs":
        """Raises ValueError unless the file has every cost: its number, and where it was measured."""
        found = json.loads(path.read_text())
        if wrong := {field.name for field in fields(cls)} ^ {*found}:
            raise ValueError(f"{path}: {', '.join(sorted(wrong))} missing or unknown; {COSTS} has what is needed")
        return cls(**{name: value for name, (value, _) in found.items()})


@dataclass(frozen=True)
class Size:
    """A shop, its cluster, and the prices."""

    users: int
    items: int
    gpus: int
    interactions: float = 20  # of a user
    changed: float = 0.1  # share of the users whose inputs change in a day
    tokens: float = 600  # of a prompt
    parameters: float = 6.7e9  # of the LLM
    tflops: float = 100  # of a GPU, sustained
    cores_per_gpu: int = 8
    usd_per_gpu_hour: float = 2.5
    usd_per_core_hour: float = 0.04
    text_dim: int = 384  # of the text encoder

    @property
    def rows(self) -> float:
        return self.users * self.interactions

    @property
    def cores(self) -> int:
        return self.gpus * self.cores_per_gpu

    @property
    def shards(self) -> int:
        """`data.num_shards`, as docs/nightly.md has it."""
        return max(math.ceil(self.users / USERS_PER_SHARD), 2 * self.gpus)

    def gpu_s(self, operations_per_token: float, prompts: float) -> float:
        return operations_per_token * self.parameters * self.tokens * prompts / (self.gpus * self.tflops * 1e12)


@dataclass(frozen=True)
class Estimate:
    seconds: float
    driver_mb: float
    worker_mb: float  # its own
    gets: float
    puts: float
    on_gpus: bool = False
    mapped_mb: float = 0  # of a node, once for all its workers; the system may take it back

    def row(self, size: Size) -> Row:
        hours = self.seconds / 3600
        price = size.gpus * size.usd_per_gpu_hour if self.on_gpus else size.cores * size.usd_per_core_hour
        return {
            "hours": round(hours, 3),
            "MB driver": round(self.driver_mb),
            "MB worker": round(self.worker_mb),
            "MB mapped": round(self.mapped_mb),
            "GETs": round(self.gets),
            "PUTs": round(self.puts),
            "USD": round(hours * price + self.gets * GET_USD + self.puts * PUT_USD, 2),
        }


class Simulation:
    """Every verb at a size, with the default config."""

    def __init__(self, size: Size, costs: Costs):
        self.size, self.costs = size, costs
        self.teacher, self.alignment, self.projection = TeacherConfig(), AlignmentConfig(), ProjectionConfig()

    def verbs(self) -> dict[str, Estimate]:
        """In their order."""
        return {
            "prepare": self.prepare(),
            "embed": self.embed(),
            "train-cf": self.train_cf(),
            "train-alignment": self.train_alignment(),
            "train-projection": self.train_projection(),
            "first run": self.nightly(self.size.users),
            "later run": self.nightly(self.size.users * self.size.changed),
        }

    def prepare(self) -> Estimate:
        size, costs, pieces = self.size, self.costs, math.ceil(self.size.rows / ROWS_PER_PIECE)
        fewer, rounds = min(pieces, size.shards), 0
        while FAN_IN ** (rounds + 1) < fewer:  # of merging, between pieces and shards
            rounds += 1
        parts = math.ceil(fewer ** (1 / (rounds + 1))) * (pieces * rounds + size.shards)
        memory = max(costs.pass_mb, costs.numbering_mb_per_item * size.items)
        seconds = costs.start_s + size.rows * costs.prepare_core_s_per_row / size.cores
        return Estimate(seconds, costs.driver_mb, memory, 2 * parts, pieces * (1 + rounds) + 3 * size.shards)

    def embed(self) -> Estimate:
        files = math.ceil(self.size.items / ITEMS_PER_FILE)
        seconds = self.costs.start_s + self.size.items * self.costs.embed_core_s_per_item / self.size.cores
        memory = self.costs.process_mb + PLAN_BYTES * self.size.items / MIB
        return Estimate(seconds, self.costs.driver_mb, memory, 2 * files, 2 * files)

    def train_cf(self) -> Estimate:
        config, users_mb = self.teacher, self._users_mb(self.size.users, 0)
        model_mb = TEACHER_COPIES * 4 * self.size.items * config.dim / MIB
        seconds = config.epochs * self.size.rows * self.costs.teacher_core_s_per_interaction / self.size.cores
        reads = 1 if users_mb <= config.memory_mb else config.epochs
        return self._training(seconds, model_mb + min(users_mb, config.memory_mb), reads)

    def train_alignment(self) -> Estimate:
        config, users = self.alignment, min(self.size.users, self.alignment.max_users or self.size.users)
        users_mb = min(self._users_mb(users, example_bytes(self.teacher.dim)), config.memory_mb)
        vectors_mb = 4 * self.size.items * (self.teacher.dim + self.size.text_dim) / MIB
        seconds = config.epochs * users * self.costs.alignment_core_s_per_user  # of one worker: its steps are short
        items_mb = self.costs.alignment_mb_per_item * self.size.items
        return self._training(seconds, vectors_mb + items_mb + users_mb, reads=2)

    def train_projection(self) -> Estimate:
        config, users = self.projection, min(self.size.users, self.projection.max_users or self.size.users)
        users_mb = min(self._users_mb(users, EXAMPLE_BYTES), config.memory_mb)
        own_mb, mapped_mb = self._items_mb(self.costs.projection_mb_per_item)
        estimate = self._training(self.size.gpu_s(4, config.epochs * users), own_mb + users_mb, 2, on_gpus=True)
        return replace(estimate, mapped_mb=mapped_mb)

    def nightly(self, ranked: float) -> Estimate:
        """A nightly run that ranks these users and reuses the rows of all others."""
        size, costs = self.size, self.costs
        retrieval = ranked * size.items * costs.retrieval_core_s_per_user_and_item
        on_cpus = (size.users * costs.nightly_core_s_per_user + retrieval) / size.cores
        seconds = costs.start_s + max(size.gpu_s(2, ranked), on_cpus)  # one shard is retrieved while another is ranked
        gets, puts = (
            costs.nightly_requests + size.shards * each
            for each in (costs.nightly_gets_per_shard, costs.nightly_puts_per_shard)
        )
        own_mb, mapped_mb = self._items_mb(costs.nightly_mb_per_item)
        return Estimate(seconds, costs.driver_mb, costs.process_mb + own_mb, gets, puts, True, mapped_mb)

    def _training(self, seconds: float, held_mb: float, reads: int, on_gpus: bool = False) -> Estimate:
        """Each worker reads all shards `reads` times; there is one for each GPU, also if only its cores are used."""
        gets = reads * self.size.shards * self.size.gpus
        memory = self.costs.process_mb + held_mb
        return Estimate(self.costs.start_s + seconds, self.costs.driver_mb, memory, gets, 0, on_gpus)

    def _users_mb(self, users: float, example_bytes: int) -> float:
        return users * (64 + example_bytes + 4 * self.size.interactions) / MIB

    def _items_mb(self, mb_per_item: float) -> tuple[float, float]:
        """What a worker holds of the items, and what the workers of a node map: E, e and q where they are large."""
        tables = [4 * self.size.items * dim for dim in (self.teacher.dim, *2 * [self.alignment.joint_dim])]
        mapped = sum(table for table in tables if is_large(table))
        own_mb = (sum(tables) - mapped) / MIB + self.size.items * mb_per_item
        return own_mb, mapped / MIB


def checked(path: Path, costs: Costs) -> list[tuple[Row, float]]:
    """What another benchmark measured, and the ratio of the simulation to it."""
    content = json.loads(path.read_text())
    found = []
    for row in content["measurements"]:
        if row.get("engine") == "ours":
            size = Size(1, row["rows"] // ROWS_PER_ITEM, 1, row["rows"], cores_per_gpu=content["settings"]["threads"])
            estimate = Simulation(size, costs).prepare()
            pairs = {"seconds": estimate.seconds}
        elif row.get("what") == "teacher":
            size = Size(row["users"], content["settings"]["items"], 1, cores_per_gpu=2, parameters=0)
            estimate = Simulation(size, costs).nightly(size.users)
            pairs = {"seconds": estimate.seconds}
        elif row.get("verb") in SIMULATED:
            settings = content["settings"]
            size = Size(settings["users"], row["items"], 1, cores_per_gpu=2, text_dim=settings["text_dim"])
            estimate = Simulation(size, costs).verbs()[SIMULATED[row["verb"]]]
            pairs = {"MB driver": estimate.driver_mb, "MB worker": estimate.worker_mb}
        else:
            continue
        labels = {name: row[name] for name in ("rows", "users", "items", "verb") if name in row}
        found += [(labels | {"what": name}, simulated / row[name]) for name, simulated in pairs.items()]
    return found


def main(
    users: Annotated[
        list[int] | None, typer.Option(help="repeat for several sizes; default 1, 10, 100 million")
    ] = None,
    items: Annotated[int | None, typer.Option(help="default: a tenth of the users")] = None,
    gpus: Annotated[int | None, typer.Option(help="default: one for a million users")] = None,
    interactions: Annotated[float, typer.Option(help="of a user")] = Size.interactions,
    changed: Annotated[float, typer.Option(help="share of the users whose inputs change in a day")] = Size.changed,
    tokens: Annotated[float, typer.Option(help="of a prompt")] = Size.tokens,
    parameters: Annotated[float, typer.Option(help="of the LLM")] = Size.parameters,
    tflops: Annotated[float, typer.Option(help="that a GPU sustains")] = Size.tflops,
    cores_per_gpu: Annotated[int, typer.Option(help="also for work on CPUs")] = Size.cores_per_gpu,
    usd_per_gpu_hour: Annotated[float, typer.Option(help="with its cores")] = Size.usd_per_gpu_hour,
    usd_per_core_hour: Annotated[float, typer.Option(help="for work on CPUs")] = Size.usd_per_core_hour,
    costs: Annotated[Path, typer.Option(help="JSON: name → number and where it is from")] = COSTS,
    check: Annotated[
        list[Path] | None, typer.Option(help="measurements to compare the costs with, and no sizes")
    ] = None,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of a table")] = False,
) -> None:
    """Time, memory, requests and money of every verb."""
    sizes = users or [10**6, 10**7, 10**8]
    more = (interactions, changed, tokens, parameters, tflops, cores_per_gpu, usd_per_gpu_hour, usd_per_core_hour)
    made = [Size(count, items or count // 10, gpus or max(count // 10**6, 1), *more) for count in sizes]
    with errors_in_one_line():
        known = Costs.read(costs)
        benchmark = Benchmark(
            NAME, Console(log_json), {"sizes": [vars(size) for size in made], "costs": vars(known)}, root
        )
        for path in check or []:
            for labels, ratio in checked(path, known):
                benchmark.measured(labels, {"simulated / measured": round(ratio, 3)})
                benchmark.at_most(f"{labels}: off by", abs(ratio - 1), 0.2)
        for size in [] if check else made:
            for verb, estimate in Simulation(size, known).verbs().items():
                benchmark.measured({"users": size.users, "verb": verb}, estimate.row(size))
        benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
