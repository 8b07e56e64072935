"""Top-N retrieval: users a second, peak memory and the index's recall, beside scoring the whole catalogue at once.

    python -m benchmarks.retrieval --quick

The reference scores a block of users with all items, masks what was seen, and takes `topk`. Every measurement is a
process of its own, so that its peak memory is its own; "MB" is what that is above the vectors and pairs it is given
(Linux tells). Vectors are clustered around centres, as trained ones are, but as far from them as they from the mean, so
that an index does not find its lists ready made. The reference is timed on a tenth of the users.

Dimensions: U users, B of a block, D of a vector, I = n + 1 items (0 is padding), N items wanted
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from allmrec.cf.approximate import ApproximateIndex, ItemLists, load_faiss
from allmrec.cf.retrieval import Pairs, retrieve
from allmrec.cf.teacher import Teacher
from allmrec.data.sequences import Sequences
from benchmarks.report import ROOT, Benchmark, Row
from jobs.runtime.console import Console

NAME = "retrieval"
SEEN, CENTRES, REFERENCE_BLOCK, SAMPLE = 20, 1000, 512, 1000


@dataclass(frozen=True)
class Case:
    way: str  # reference, exact or index
    users: int
    items: int
    dim: int = 50
    count: int = 20
    threads: int = 1

    def labels(self) -> Row:
        return {"way": self.way, "users": self.users, "items": self.items}


class Vectors(Teacher):
    """Items and users about common centres."""

    table: torch.Tensor

    def __init__(self, case: Case):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        centres = torch.randn(CENTRES, case.dim, generator=generator)

        def around(count: int) -> torch.Tensor:
            noise_UD = torch.randn(count, case.dim, generator=generator)
            return noise_UD.add_(centres[torch.randint(CENTRES, (count,), generator=generator)])

        self.register_buffer("table", around(case.items + 1))
        self.table[0] = 0
        self.users_UD = around(case.users)
        rows = torch.arange(case.users).repeat_interleave(SEEN)
        self.seen: Pairs = rows, torch.randint(1, case.items + 1, (len(rows),), generator=generator)
        self.available_I = torch.arange(case.items + 1) > 0

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.table

    def represent(self, histories: Sequences) -> torch.Tensor:
        raise NotImplementedError


@torch.inference_mode()
def reference(teacher: Vectors, count: int) -> torch.Tensor:
    """Int64 (U, N), ties in any order."""
    row_S, item_S = teacher.seen
    found = []
    for first in range(0, len(teacher.users_UD), REFERENCE_BLOCK):
        score_BI = teacher.shared_scores(teacher.users_UD[first : first + REFERENCE_BLOCK])
        inside = (row_S >= first) & (row_S < first + REFERENCE_BLOCK)
        score_BI[row_S[inside] - first, item_S[inside]] = -torch.inf
        found.append(score_BI.masked_fill_(~teacher.available_I, -torch.inf).topk(count, dim=1).indices)
    return torch.cat(found)


def measure(case: Case) -> Row:
    """In a fresh process."""
    torch.set_num_threads(case.threads)
    teacher = Vectors(case)
    if case.way == "index":
        load_faiss().omp_set_num_threads(case.threads)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again: making the vectors took more than they do
    before, built = _memory_mb("VmRSS"), 0.0
    started, cpu = time.perf_counter(), time.process_time()
    if case.way == "reference":
        reference(teacher, case.count)
    elif case.way == "exact":
        retrieve(teacher, teacher.users_UD, teacher.seen, teacher.available_I, case.count)
    else:
        index = ApproximateIndex(teacher, teacher.available_I, ItemLists.of(teacher, teacher.available_I, seed=0))
        built = time.perf_counter() - started
        started, cpu = time.perf_counter(), time.process_time()
        items, _ = index.retrieve(teacher.users_UD, teacher.seen, case.count)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    numbers = {
        "users/s": case.users / seconds,
        "users/s of a core": case.users / cpu,
        "MB": _memory_mb("VmHWM") - before,
    }
    if case.way == "index":
        numbers |= {"built in s": built, "recall": recall(teacher, items, case.count)}
    return numbers


def recall(teacher: Vectors, items_UN: torch.Tensor, count: int) -> float:
    """Of the first users' exact items, the share that was found."""
    row_S, item_S = teacher.seen
    inside = row_S < SAMPLE
    pairs = row_S[inside], item_S[inside]
    exact, _ = retrieve(teacher, teacher.users_UD[:SAMPLE], pairs, teacher.available_I, count)
    return float(np.mean((exact[:, :, None] == items_UN[:SAMPLE, None, :]).any(2).numpy()))


def _memory_mb(name: str) -> float:
    """Of this process: VmRSS is now, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def main(
    users: Annotated[int | None, typer.Option(help="default: 10,000; quick: 500")] = None,
    items: Annotated[int | None, typer.Option(help="default: 1,000,000; quick: 20,000")] = None,
    threads: Annotated[int, typer.Option(help="of torch and faiss; a worker of one CPU has one")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Reference, exact and approximate retrieval, and exact retrieval of half the users and of half the items."""
    users, items = users or (500 if quick else 10_000), items or (20_000 if quick else 1_000_000)
    console = Console(log_json)
    benchmark = Benchmark(NAME, console, {"users": users, "items": items, "threads": threads}, root, quick)
    exact = Case("exact", users, items, threads=threads)
    half_users, half_items = replace(exact, users=users // 2), replace(exact, items=items // 2)
    index = replace(exact, way="index")
    plain = replace(exact, way="reference", users=max(users // 10, 1))
    cases = [plain, exact, half_users, half_items, index]
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, max_tasks_per_child=1) as fresh,
        console.progress(NAME, len(cases)) as bar,
    ):
        for case in cases:
            benchmark.measured(case.labels(), fresh.submit(measure, case).result())
            bar.advance(1)

    def number(name: str, case: Case) -> float:
        return benchmark.mean(name, **case.labels())

    benchmark.at_least("users/s: exact / reference", number("users/s", exact) / number("users/s", plain), 5)
    benchmark.at_most("MB of exact, most", max(number("MB", case) for case in (exact, half_users, half_items)), 512)
    benchmark.at_least("users/s: index / exact", number("users/s", index) / number("users/s", exact), 3)
    benchmark.at_least("recall of the index", number("recall", index), 0.95)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
