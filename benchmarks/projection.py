"""How fast Stage-2 trains, beside a reference implementation of the paper with the same LLM and batches.

    python -m benchmarks.projection --workspace runs/beauty --llm runs/beauty/models/llm
    python -m benchmarks.projection --workspace runs/beauty --shape opt-125m --dtype bfloat16

Both sides train on the same users and candidates, from the same projectors, one after the other step by step; their
first losses are shown to be equal. The reference takes the users as they come, ours as `global_batch` divides them.
A third side does nothing but the LLM's layers on our batches, forward and back, which is what neither can leave out.
With `--shape` the LLM has the shape of a published OPT and random weights, which cost the same as trained ones; on a
GPU the rate is also given as a share of what matrix products reach there (MFU).
"""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from allmrec.cf.teacher import TeacherConfig, build_teacher
from allmrec.core.workspace import open_workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences
from allmrec.demo.llm import train_tokenizer
from allmrec.llm.batches import padded_tokens
from allmrec.llm.loading import LLMConfig, load_llm, load_tokenizer, max_positions
from allmrec.llm.prompt import PromptBuilder, PromptConfig, Titles
from allmrec.projection.examples import Examples
from allmrec.projection.projectors import ProjectionConfig
from allmrec.projection.training import ProjectionTraining
from benchmarks.clock import now
from benchmarks.large_llm import matmul_rate
from benchmarks.layers_alone import hidden_states
from benchmarks.process_group import group_of_one
from benchmarks.projection_reference import ReferenceStage2
from benchmarks.report import ROOT, Benchmark, Row
from benchmarks.teachers import sample_store
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "projection"
# Hidden size, layers, heads and feed-forward size; all read 50,272 tokens, as the published models do.
SHAPES = {
    "tiny": (64, 2, 2, 256),
    "small": (256, 4, 4, 1024),
    "opt-125m": (768, 12, 12, 3072),
    "opt-1.3b": (2048, 24, 32, 8192),
    "opt-6.7b": (4096, 32, 32, 16384),
}
_VOCABULARY = 50_272
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_DIM = 50  # of the teacher and of joint embeddings
_LOSSES_AGREE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # 8 bits of mantissa, some 10 nats


def shaped_llm(shape: str, titles: Any, prompt: PromptConfig, folder: Path) -> str:
    """An OPT of a published shape with random weights, and a tokenizer of these titles, in a folder."""
    from transformers import OPTConfig, OPTForCausalLM

    hidden, layers, heads, feed_forward = SHAPES[shape]
    tokenizer = train_tokenizer(titles, [prompt], 4096)
    config = OPTConfig(
        vocab_size=_VOCABULARY,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=feed_forward,
    )
    torch.manual_seed(0)
    llm = OPTForCausalLM(config)
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Sides:
    """Both implementations over one prepared workspace and one LLM, and what each has done."""

    def __init__(self, workspace: Path, llm: LLMConfig, prompt: PromptConfig, projection: ProjectionConfig):
        opened = open_workspace(str(workspace))
        catalogue, sequences = Catalogue.read(opened.items), Sequences.read_train(opened.sequences)
        model, tokenizer = load_llm(llm).to(DEVICE), load_tokenizer(llm)
        self.dtype: torch.dtype = model.dtype  # type: ignore[assignment]
        titles = Titles.tokenise(catalogue.titles, tokenizer, prompt.max_title_tokens)
        builder = PromptBuilder(prompt, tokenizer, titles, soft=True, max_tokens=max_positions(model))
        self.batch_size = projection.batch_size
        self.examples = Examples(sequences, builder, projection.num_candidates, seed=0)
        self.order = self.examples.order(0)
        torch.manual_seed(0)
        teacher = build_teacher(TeacherConfig(dim=_DIM), catalogue.num_items).eval().requires_grad_(False)
        e_NJ = torch.randn(catalogue.num_items + 1, _DIM)
        nothing_by_text = torch.zeros(len(e_NJ), dtype=torch.bool)
        self.ours = ProjectionTraining(
            projection, llm, "replicated", model, teacher, e_NJ, nothing_by_text, self.examples, device=DEVICE
        )
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        projectors = copy.deepcopy(self.ours.projectors)
        self.reference = ReferenceStage2(
            model,
            tokenizer,
            projectors,
            teacher,
            e_NJ.to(DEVICE),
            self.examples,
            catalogue.titles.to_pylist(),
            prompt,
            projection.learning_rate,
        )

    def first_losses(self) -> tuple[float, float]:
        """Of one batch, before any step: ours and the reference's."""
        examples, prompts = self.examples.global_batch(0, 0, self.batch_size)
        return self.ours.loss(examples, prompts), self.reference.loss(examples, 0).item()

    def step(self, side: str, number: int) -> None:
        torch.set_flush_denormal(side != "reference")  # as our job does
        if side == "ours":
            self.ours.train_step(*self.examples.global_batch(0, number, self.batch_size))
        elif side == "layers alone":
            self.layers(number)
        else:
            self.reference.step(self.order[number * self.batch_size : (number + 1) * self.batch_size], 0)

    def layers(self, number: int) -> None:
        """The LLM's layers on the passes of our step, forward and backward to the inputs."""
        llm = self.ours.engine.module.llm
        examples, prompts = self.examples.global_batch(0, number, self.batch_size)
        for batch in self.examples.passes(examples, prompts, 0, 1, self.ours.config.tokens_per_pass):
            tokens_BT = padded_tokens(batch.prompts, int(batch.prompts.lengths.max()), 0)
            hidden_BTH = hidden_states(llm, tokens_BT, gradients=True)
            hidden_BTH.backward(torch.randn_like(hidden_BTH))

    def reset_counts(self) -> None:
        """Count from here."""
        for side in (self.ours, self.reference):
            side.read = side.padded = 0


def compare(benchmark: Benchmark, sides: Sides, steps: int, ceiling: float | None) -> None:
    """Steps of all sides in turn, and their rates."""
    ours, reference = sides.first_losses()
    benchmark.at_most("difference of the first losses", abs(ours - reference), _LOSSES_AGREE[sides.dtype])
    seconds = {"ours": 0.0, "reference": 0.0, "layers alone": 0.0}
    for side in seconds:
        sides.step(side, steps)  # warm
    sides.reset_counts()
    with benchmark.console.progress(NAME, steps) as bar:
        for number in range(steps):
            for side in seconds:
                started = now()
                sides.step(side, number)
                seconds[side] += now() - started
            bar.advance(1)
    torch.set_flush_denormal(False)
    for side, counts in (("ours", sides.ours), ("reference", sides.reference)):
        numbers: Row = {
            "prompts/s": steps * sides.batch_size / seconds[side],
            "tokens/s": counts.read / seconds[side],
            "padding %": 100 * (1 - counts.read / counts.padded),
        }
        if ceiling:  # forward, and backward to the inputs: two operations a weight and token each
            numbers["MFU"] = 4 * sides.parameters * counts.read / seconds[side] / ceiling
        benchmark.measured({"side": side, "batch": sides.batch_size}, numbers)
    alone = seconds["layers alone"]
    numbers = {"prompts/s": steps * sides.batch_size / alone, "tokens/s": sides.ours.read / alone}
    benchmark.measured({"side": "layers alone", "batch": sides.batch_size}, numbers)
    benchmark.at_least("rate / the LLM's layers alone, forward and back", alone / seconds["ours"], 0.95)
    benchmark.at_least("speed over the reference implementation", seconds["reference"] / seconds["ours"], 3.0)
    benchmark.at_most("padding of ours, %", 100 * (1 - sides.ours.read / sides.ours.padded), 5.0)


def main(
    workspace: Annotated[Path | None, typer.Option(help="a prepared workspace; a generated shop by default")] = None,
    llm: Annotated[str | None, typer.Option(help="folder or hub name; by default a random one of --shape")] = None,
    shape: Annotated[str, typer.Option(help=f"of the random LLM: {', '.join(SHAPES)}")] = "opt-125m",
    dtype: Annotated[str, typer.Option(help="of the LLM: auto, float32 or bfloat16")] = "auto",
    batch_size: Annotated[int, typer.Option(help="prompts in a step; the paper's is 4")] = 4,
    steps: int = 50,
    quick: Annotated[bool, typer.Option(help="in under a minute, at a small size")] = False,
    root: Annotated[Path, typer.Option(help="where results and generated inputs go")] = ROOT,
    log_json: bool = False,
) -> None:
    """Measure Stage-2 beside a reference implementation of the paper."""
    console, settings = Console(log_json), dict(locals())
    if quick:
        shape, steps = "tiny", 5
    with errors_in_one_line(), TemporaryDirectory() as folder, group_of_one(folder):
        workspace = workspace or sample_store(*((600, 150) if quick else (20_000, 4_000)), root, console)
        prompt = PromptConfig()
        titles = Catalogue.read(open_workspace(str(workspace)).items).titles
        name = llm or shaped_llm(shape, titles, prompt, Path(folder))
        config = ProjectionConfig(batch_size=batch_size)
        sides = Sides(workspace, LLMConfig.model_validate({"name": name, "dtype": dtype}), prompt, config)
        benchmark = Benchmark(NAME, console, settings, root, quick)
        compare(benchmark, sides, steps, matmul_rate(DEVICE, torch.bfloat16) if DEVICE.type == "cuda" else None)
        benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
