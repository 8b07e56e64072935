"""Stage-2 with the LLM replicated, sharded and offloaded: the same losses, and what a worker holds.

    python -m benchmarks.placement --shape opt-125m
    python -m benchmarks.placement --offload-to /nvme/offload

Each placement trains for some steps on workers of its own (gloo, one thread each, DeepSpeed under them), over a
generated shop. Memory is what a worker holds of the weights, and its resident size after loading the LLM less that
before it; in the latter are some 100 MB of DeepSpeed's own, whatever the LLM.
"""

import ctypes
import json
import multiprocessing
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from torch import distributed as dist

from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.core.workspace import open_workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.llm.loading import LLMConfig, Placement, load_tokenizer, max_positions
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.projection.engine import load_llm_with_placement
from allmrec.projection.examples import Examples
from allmrec.projection.placement import llm_outline
from allmrec.projection.projectors import ProjectionConfig
from allmrec.projection.training import ProjectionTraining
from benchmarks.projection import SHAPES, shaped_llm
from benchmarks.report import ROOT, Benchmark, Row
from benchmarks.teachers import sample_store
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "placement"
_DIM = 50  # of the teacher and of joint embeddings
PLACEMENTS: dict[str, Placement] = {
    "replicated": "replicated",
    "sharded": "sharded",
    "offloaded to CPU memory": "offloaded",
    "offloaded to a disk": "offloaded",
}


def worker(
    rank: int, world: int, folder: str, workspace: str, llm: LLMConfig, placement: Placement, steps: int
) -> None:
    """One of `world` processes: train, and leave the losses and the memory in a file."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    opened = open_workspace(workspace)
    catalogue, sequences = Catalogue.read(opened.items), Sequences.read_train(opened.sequences)
    prompt, projection = PromptConfig(), ProjectionConfig(checkpoint_every_steps=1, learning_rate=1e-3)
    tokenizer, outline = load_tokenizer(llm), llm_outline(llm)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: F401  not to be counted as the LLM's

    before = resident_mb()
    model = load_llm_with_placement(llm, placement, outline.largest_weight)
    # A replica's weights are mapped from the file until they are read.
    for parameter in model.parameters():  # a replica's are mapped from the file until they are read
        parameter.detach().sum()
    after = resident_mb()
    parts = (getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters())
    weights = sum(part.numel() * part.element_size() for part in parts) / 2**20
    titles = Titles.tokenise(catalogue.titles, tokenizer, prompt.max_title_tokens)
    builder = PromptBuilder(prompt, tokenizer, titles, soft=True, max_tokens=max_positions(model))
    torch.manual_seed(0)
    teacher = build_teacher(TeacherConfig(dim=_DIM), catalogue.num_items).eval().requires_grad_(False)
    e_NJ = torch.randn(catalogue.num_items + 1, _DIM)
    examples = Examples(sequences, builder, projection.num_candidates, seed=0)
    nothing_by_text = torch.zeros(len(e_NJ), dtype=torch.bool)
    training = ProjectionTraining(projection, llm, placement, model, teacher, e_NJ, nothing_by_text, examples)
    rounds = training.rounds()
    losses = [next(rounds)["loss"] for _ in range(steps)]
    found = {
        "losses": losses,
        "MB of weights": weights,
        "MB resident": after - before,
        "checksum": training.frozen_checksum,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def resident_mb() -> float:
    """What this process holds, once what it has freed is given back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(world: int, workspace: str, llm: LLMConfig, placement: Placement, steps: int) -> list[Row]:
    """What each of `world` fresh processes found."""
    with TemporaryDirectory() as folder:
        processes = [
            multiprocessing.get_context("spawn").Process(
                target=worker, args=(rank, world, folder, workspace, llm, placement, steps)
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise ValueError(f"a worker of the placement {placement!r} failed; its error is above")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def main(
    shape: Annotated[str, typer.Option(help=f"of a random LLM: {', '.join(SHAPES)}")] = "opt-125m",
    workers: int = 2,
    steps: int = 20,
    offload_to: Annotated[Path | None, typer.Option(help="folder for the placement on a disk; else left out")] = None,
    quick: Annotated[bool, typer.Option(help="in under a minute, at a small size")] = False,
    root: Annotated[Path, typer.Option(help="where results and generated inputs go")] = ROOT,
    log_json: bool = False,
) -> None:
    """Compare the placements of the LLM in training."""
    console, settings = Console(log_json), dict(locals())
    if quick:
        shape, steps = "tiny", 3
    benchmark = Benchmark(NAME, console, settings, root, quick, repeat="worker")
    with errors_in_one_line(), TemporaryDirectory() as folder:
        workspace = str(sample_store(600, 150, root, console))
        name = shaped_llm(shape, Catalogue.read(open_workspace(workspace).items).titles, PromptConfig(), Path(folder))
        found: dict[str, list[Row]] = {}
        for label, placement in PLACEMENTS.items():
            disk = label == "offloaded to a disk"
            if disk and offload_to is None:
                continue
            llm = LLMConfig(name=name, dtype="float32", offload_to=str(offload_to) if disk else "cpu")
            found[label] = train(workers, workspace, llm, placement, steps)
            first: list[float] = found["replicated"][0]["losses"]
            for rank, numbers in enumerate(found[label]):
                difference = max(abs(a - b) for a, b in zip(numbers["losses"], first, strict=True))
                measured: Row = {name: numbers[name] for name in ("MB of weights", "MB resident")}
                measured["loss differs by"] = difference
                benchmark.measured({"placement": label, "worker": rank}, measured)
            benchmark.at_most(f"{label}: difference of {steps} losses", difference, 1e-4)
        for name in ("MB of weights", "MB resident"):
            share = benchmark.mean(name, placement="sharded") / benchmark.mean(name, placement="replicated")
            benchmark.at_most(f"{name}: a sharded LLM's worker over a replica's", share, 1.2 / workers)
        assert len({row["checksum"] for rows in found.values() for row in rows}) == 1, (
            "every placement read all weights"
        )
        benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
