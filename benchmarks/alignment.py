"""How fast Stage-1 trains, with SBERT fine-tuned along and with it frozen, beside a reference implementation.

    python -m benchmarks.alignment --workspace runs/beauty --model sentence-transformers/all-MiniLM-L6-v2

Both train as the paper's preset does: the same encoder, the same batches of 32 users with one negative each, a process
for each. They take steps in turns, and their losses must be equal at every step. The reference runs a
frozen SBERT in every step too; ours reads what `embed` computed once, whose time does not count. The teacher has fresh
weights: speed does not depend on them. "samples/CPU s" is what is left of "samples/s" to compare where other work
shares the machine.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import typer

from allmrec.alignment.examples import Examples, Rows
from allmrec.alignment.network import AlignmentConfig
from allmrec.alignment.texts import DistinctTexts, TrainedTexts
from allmrec.alignment.training import AlignmentTraining
from allmrec.cf.teacher import Teacher, TeacherConfig, build_teacher
from allmrec.core.workspace import open_workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.demo.encoder import build_encoder
from allmrec.text.encoder import TextConfig, TextEncoder, load_encoder
from benchmarks.alignment_reference import NAMES, ReferenceTraining
from benchmarks.report import ROOT, Benchmark
from benchmarks.teachers import sample_store
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "alignment"
TOLERANCE = 1e-3  # between two losses after a few steps, relative


@dataclass(frozen=True)
class Case:
    """What both train on: `steps` batches of a prepared workspace."""

    workspace: str
    model: str
    steps: int
    threads: int
    texts_NS: np.ndarray | None = None  # Q of the items in the batches, zeros elsewhere

    @cached_property
    def text(self) -> TextConfig:
        return TextConfig(model=self.model)

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.read(open_workspace(self.workspace).items, texts=True)

    def config(self, text_encoder: str) -> AlignmentConfig:
        return AlignmentConfig(preset="paper", text_encoder=text_encoder)

    def teacher(self) -> Teacher:
        torch.manual_seed(0)
        return build_teacher(TeacherConfig(preset="paper"), self.catalogue.num_items).eval().requires_grad_(False)

    def sequences(self) -> Sequences:
        return Sequences.read_train(open_workspace(self.workspace).sequences)

    def batches(self, examples: Examples) -> list[Rows]:
        return list(islice(examples.batches(0), self.steps))


class Ours:
    """`AlignmentTraining` on given batches."""

    def __init__(self, case: Case, text_encoder: str):
        config = case.config(text_encoder)
        self.trained = None
        if text_encoder == "fine-tuned":
            texts = DistinctTexts.of(case.catalogue.texts)
            self.trained = TrainedTexts(config, load_encoder(case.text), texts, case.text.max_chars)
        texts_NS = torch.from_numpy(case.texts_NS)
        self.training = AlignmentTraining(
            config, case.teacher(), case.sequences(), texts_NS, 0, trained_texts=self.trained
        )
        self.batches = case.batches(self.training.examples)

    def step(self, rows: Rows) -> dict[str, float]:
        losses = self.training.train_step(rows)
        return {name: getattr(losses, name).item() for name in NAMES}

    def tokens(self) -> tuple[int, int]:
        return (self.trained.read, self.trained.padded) if self.trained else (0, 0)


class Reference:
    """`ReferenceTraining` on the same batches, from the same weights."""

    def __init__(self, case: Case, text_encoder: str):
        config = case.config(text_encoder)
        texts_NS = torch.from_numpy(case.texts_NS)
        start = AlignmentTraining(case.config("frozen"), case.teacher(), case.sequences(), texts_NS, 0)
        self.batches, self.x_PD = case.batches(start.examples), start.examples.x_PD
        self.training = ReferenceTraining(
            load_encoder(case.text),
            pc.utf8_slice_codeunits(case.catalogue.texts, 0, case.text.max_chars).to_pylist(),
            start.items_ND,
            start.network.state_dict(),
            config.learning_rate,
            config.alpha,
            config.beta,
            tuned=text_encoder == "fine-tuned",
        )

    def step(self, rows: Rows) -> dict[str, float]:
        own = rows.positive_R
        x_BD = self.x_PD[torch.from_numpy(rows.target_R[own])]
        return self.training.step(x_BD, rows.item_R[own].tolist(), rows.item_R[~own].tolist())

    def tokens(self) -> tuple[int, int]:
        return self.training.read, self.training.padded


IMPLEMENTATIONS: dict[str, Any] = {"ours": Ours, "reference": Reference}
_here: dict[str, Any] = {}  # the implementation of this process


def prepare(case: Case, implementation: str, text_encoder: str) -> None:
    torch.set_num_threads(case.threads)
    _here["side"] = IMPLEMENTATIONS[implementation](case, text_encoder)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory from here on


def step(number: int) -> tuple[dict[str, float], dict[str, float]]:
    """Train on a batch: the losses, and what it took."""
    side = _here["side"]
    rows, before = side.batches[number], side.tokens()
    started, worked = time.perf_counter(), time.process_time()
    losses = side.step(rows)
    seconds, busy = time.perf_counter() - started, time.process_time() - worked
    read, padded = np.subtract(side.tokens(), before).tolist()
    return losses, {"users": rows.num_users, "seconds": seconds, "busy": busy, "read": read, "padded": padded}


def peak_mb() -> float:
    """The most memory that this process has held since its peak was cleared."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def with_texts(case: Case) -> Case:
    """The case with Q of its batches' items."""
    num_rows = case.catalogue.num_items + 1
    examples = Examples(case.config("frozen"), case.teacher(), case.sequences(), 0)
    items = np.unique(np.concatenate([rows.item_R for rows in case.batches(examples)]))
    embedded = TextEncoder(case.text)(pa.table({"text": case.catalogue.texts.take(pa.array(items))}))["embedding"]
    rows_LS = embedded.combine_chunks().flatten().to_numpy().reshape(len(items), -1)
    texts_NS = np.zeros((num_rows, rows_LS.shape[1]), np.float32)
    texts_NS[items] = rows_LS
    return replace(case, texts_NS=texts_NS)


def refuse_difference(step: int, ours: dict[str, float], reference: dict[str, float]) -> None:
    """Raises ValueError unless all losses of a step are the same."""
    for name in NAMES:
        if abs(ours[name] - reference[name]) > TOLERANCE * max(abs(reference[name]), TOLERANCE):
            raise ValueError(f"{name} of step {step} is {ours[name]:.6g}, and {reference[name]:.6g} in the reference")


def main(
    workspace: Annotated[Path | None, typer.Option(help="a prepared workspace; default: a generated store")] = None,
    model: Annotated[str | None, typer.Option(help="hub name or folder; default: MiniLM; quick: the stand-in")] = None,
    steps: Annotated[int | None, typer.Option(help="of 32 users, in a trial; default: 8; quick: 4")] = None,
    trials: Annotated[int, typer.Option(help="of each, in turns; the first only warms up")] = 3,
    threads: Annotated[int, typer.Option(help="of each")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Train both ways, in turns; compare losses, then speed and memory."""
    steps = steps or (4 if quick else 8)
    console, work = Console(log_json), root / NAME
    settings = {"workspace": workspace, "model": model, "steps": steps, "trials": trials, "threads": threads}
    benchmark = Benchmark(NAME, console, settings, root, quick, repeat="trial")
    with errors_in_one_line():
        store = str(workspace or sample_store(*((600, 150) if quick else (20_000, 4_000)), work, console))
        if quick and model is None:
            model = str(work / "encoder")
            build_encoder(Catalogue.read(open_workspace(store).items, texts=True).texts[1:], model)
        case = with_texts(Case(store, model or "sentence-transformers/all-MiniLM-L6-v2", steps, threads))
        for text_encoder, bar in (("fine-tuned", 1.5), ("frozen", 20)):
            compare(benchmark, case, text_encoder, trials)
            speeds = [benchmark.mean("samples/s", SBERT=text_encoder, implementation=name) for name in IMPLEMENTATIONS]
            benchmark.at_least(f"{text_encoder}, samples/s: ours / reference", speeds[0] / speeds[1], bar)
    benchmark.finish()


def compare(benchmark: Benchmark, case: Case, text_encoder: str, trials: int) -> None:
    """All trials of both implementations, in turns."""
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=prepare, initargs=(case, name, text_encoder))
            )
            for name in IMPLEMENTATIONS
        }
        for number in range(trials):
            spent: dict[str, list[dict[str, float]]] = {name: [] for name in IMPLEMENTATIONS}
            for at in range(case.steps):
                done = {name: process.submit(step, at).result() for name, process in processes.items()}
                refuse_difference(at, *(losses for losses, _ in done.values()))
                for name, (_, numbers) in done.items():
                    spent[name].append(numbers)
            for name in IMPLEMENTATIONS if number or trials == 1 else ():
                total = {key: sum(numbers[key] for numbers in spent[name]) for key in spent[name][0]}
                numbers = {
                    "samples/s": total["users"] / total["seconds"],
                    "samples/CPU s": total["users"] / total["busy"],
                    "tokens/s": total["read"] / total["seconds"],
                    "padding %": 100 * (1 - total["read"] / total["padded"]) if total["padded"] else 0.0,
                    "peak MB": processes[name].submit(peak_mb).result(),
                }
                benchmark.measured({"SBERT": text_encoder, "implementation": name, "trial": number}, numbers)


if __name__ == "__main__":
    typer.run(main)
