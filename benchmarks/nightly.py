"""What the nightly run's ranking costs and is worth, beside the other ways to have an LLM choose among candidates.

    python -m benchmarks.nightly --run runs/demo

One LLM, one bundle, one process and the same users, those of the run's stored test cases with random negatives:

    trie ranking         as the nightly run and the evaluation do it: one pass, logits at branching nodes
    title likelihood     every whole title as a branch behind the prompt, one pass
    constrained decoding greedy, token by token along the candidate trie
    free generation      greedy, as the paper does it; a text that is no candidate's title names nobody
    generate()           the same by transformers' own, straight: four prompts at once (paper section 5.1), as they come

All but the last are batched by length under the same token budget; all that decode keep a KV cache. Seconds hold x_u,
prompts and scores; loading and the first batch are outside of them. Then the real nightly job runs on Ray and publishes
to S3 (moto, over HTTP), and where there is a GPU an OPT-6.7B of random weights does the same users, measured against
the GPU's own matmul.
"""

import datetime
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer

from allmrec.artifacts import read_table
from allmrec.bundle import latest_bundle, load_bundle
from allmrec.data.sequences import Sequences
from allmrec.evaluation.metrics import METRICS, measure
from allmrec.evaluation.systems import Cases, Systems
from allmrec.llm.batches import SoftTokens, take
from allmrec.llm.generation import Generator, left_padded, named_by_text
from allmrec.llm.likelihood import TitleLikelihood
from allmrec.llm.prompt import PromptBuilder
from allmrec.llm.ranking import Ranker
from allmrec.scorer import Scorer
from allmrec.storage import open_storage
from benchmarks.report import ROOT, Benchmark, Row
from jobs.cli import errors_in_one_line, load_step
from jobs.config import Config
from jobs.console import Console, Phase
from jobs.nightly import nightly
from jobs.run import TRAINING
from jobs.sample_data import sample_data
from jobs.step import execute

# B cases, C candidates (the target first), T tokens, H token dimension

NAME = "nightly"
TRIE, LIKELIHOOD, CONSTRAINED, FREE = "trie ranking", "title likelihood", "constrained decoding", "free generation"
STRAIGHT, STRAIGHT_BATCH = "generate()", 4
FULL: Row = {"users": 500, "trials": 3}
QUICK: Row = {"users": 24, "trials": 1}
DATE = datetime.date(2026, 1, 1)


@dataclass
class Stopwatch:
    """Passes through a module, and seconds in them."""

    module: torch.nn.Module
    passes: int = 0
    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = 0.0

        def start(*_: Any) -> None:
            nonlocal started
            started = now()

        def stop(*_: Any) -> None:
            self.seconds += now() - started
            self.passes += 1

        self.passes, self.seconds = 0, 0.0
        handles = [self.module.register_forward_pre_hook(start), self.module.register_forward_hook(stop)]
        yield
        for handle in handles:
            handle.remove()


class Ways:
    """Cases → who is hit, float64 (B,), what was read, and how many texts named nobody."""

    def __init__(self, scorer: Scorer, seed: int):
        self.scorer, self.systems = scorer, Systems(scorer, seed)
        builder = scorer.ranker(soft=True).builder
        assert isinstance(builder, PromptBuilder)
        self.builder, self.budget = builder, scorer.config.tokens_per_batch
        self.longest = builder.config.max_title_tokens + 1
        self.by_name: dict[str, Callable[[Cases], tuple[np.ndarray, Any, int]]] = {
            TRIE: self.trie,
            LIKELIHOOD: self.likelihood,
            CONSTRAINED: self.constrained,
            FREE: self.free,
            STRAIGHT: self.straight,
        }

    def trie(self, cases: Cases) -> tuple[np.ndarray, Any, int]:
        ranker = Ranker(self.scorer.llm, self.builder, self.budget)
        return self._best(cases, ranker.log_probabilities), ranker, 0

    def likelihood(self, cases: Cases) -> tuple[np.ndarray, Any, int]:
        likelihood = TitleLikelihood(self.scorer.llm, self.builder, self.budget)
        return self._best(cases, likelihood.log_likelihoods), likelihood, 0

    def constrained(self, cases: Cases) -> tuple[np.ndarray, Any, int]:
        shown_BC, soft = self._shown(cases)
        generator = Generator(self.scorer.llm, self.builder.end, self.budget)
        prompts = self.builder.build(cases.histories, shown_BC)
        named_BC = generator.constrained(prompts, soft, self.builder.titles, shown_BC)
        return self._hit(cases, shown_BC, named_BC), generator, nobody(named_BC)

    def free(self, cases: Cases) -> tuple[np.ndarray, Any, int]:
        shown_BC, soft = self._shown(cases)
        generator = Generator(self.scorer.llm, self.builder.end, self.budget)
        texts = generator.free(self.builder.build(cases.histories, shown_BC), soft, self.longest)
        named_BC = named_by_text(texts, self.scorer.tokenizer, self.builder.titles, shown_BC)
        return self._hit(cases, shown_BC, named_BC), generator, nobody(named_BC)

    @torch.inference_mode()
    def straight(self, cases: Cases) -> tuple[np.ndarray, Any, int]:
        llm: Any = self.scorer.llm
        shown_BC, soft = self._shown(cases)
        prompts = self.builder.build(cases.histories, shown_BC)
        texts: list[list[int]] = []
        read = Read()
        for first in range(0, len(cases), STRAIGHT_BATCH):
            rows = np.arange(first, min(first + STRAIGHT_BATCH, len(cases)))
            embeds_BTH, mask_BT = left_padded(llm, take(prompts, rows), soft.of(rows), self.builder.end)
            written = llm.generate(
                inputs_embeds=embeds_BTH,
                attention_mask=mask_BT,
                max_new_tokens=self.longest,
                do_sample=False,
                eos_token_id=self.builder.end,
                pad_token_id=self.builder.end,
            )
            texts += [[*text, self.builder.end] for text in written.tolist()]
            read.tokens += int(mask_BT.sum()) + written.numel()
            read.padding += int((mask_BT == 0).sum())
        texts = [text[: text.index(self.builder.end)] for text in texts]
        named_BC = named_by_text(texts, self.scorer.tokenizer, self.builder.titles, shown_BC)
        return self._hit(cases, shown_BC, named_BC), read, nobody(named_BC)

    def _shown(self, cases: Cases) -> tuple[np.ndarray, SoftTokens]:
        x_BD = self.scorer.represent(cases.histories)
        order_BC = self.systems.shown_order(cases)
        with torch.inference_mode():
            soft = SoftTokens(self.scorer.projectors.user(x_BD), self.scorer.item_tokens())
        return np.take_along_axis(cases.candidates_BC, order_BC, axis=1), soft

    def _best(self, cases: Cases, score: Callable[..., np.ndarray]) -> np.ndarray:
        shown_BC, soft = self._shown(cases)
        scores_BC = np.empty(shown_BC.shape)
        np.put_along_axis(scores_BC, self.systems.shown_order(cases), score(cases.histories, shown_BC, soft), axis=1)
        return measure(scores_BC, cases.candidates_BC)[:, METRICS.index("hit@1")]

    def _hit(self, cases: Cases, shown_BC: np.ndarray, named_BC: np.ndarray) -> np.ndarray:
        """A title that candidates share is worth its part, as in ranking."""
        right_B = (named_BC & (shown_BC == cases.candidates_BC[:, :1])).any(axis=1)
        return right_B / np.maximum(named_BC.sum(axis=1), 1)


@dataclass
class Read:
    """What was read; rows that go on as padding once they have ended count, as they cost."""

    tokens: int = 0
    padding: int = 0


def nobody(named_BC: np.ndarray) -> int:
    """How many texts name no candidate."""
    return int((~named_BC.any(axis=1)).sum())


def compare(benchmark: Benchmark, scorer: Scorer, cases: Cases, seed: int, trials: int) -> None:
    """Every way on the same cases, one after another in each trial."""
    ways, watch = Ways(scorer, seed), Stopwatch(scorer.llm.base_model)  # type: ignore[arg-type]
    for trial in range(trials):
        for name, way in ways.by_name.items():
            if trial == 0:
                way(cases.take(np.arange(min(len(cases), 8))))
            with watch.running():
                started = now()
                hit_B, read, unnamed = way(cases)
                seconds = now() - started
            numbers = {
                "users/s": len(cases) / seconds,
                "tokens/s": read.tokens / seconds,
                "tokens a user": read.tokens / len(cases),
                "passes": watch.passes,
                "padding %": 100 * read.padding / (read.tokens + read.padding),
                "in the LLM %": 100 * watch.seconds / seconds,
                "hit@1": float(hit_B.mean()),
                "stderr": float(hit_B.std() / np.sqrt(len(hit_B))),
                "named nobody %": 100 * unnamed / len(cases),
            }
            benchmark.measured({"way": name, "trial": trial}, numbers)

    def rate(way: str) -> float:
        return median(numbers["users/s"] for have, numbers in benchmark.measurements if have["way"] == way)

    def hits(way: str) -> float:
        return benchmark.mean("hit@1", way=way)

    benchmark.at_least("users/s: trie ranking / free generation", rate(TRIE) / rate(FREE), 5)
    benchmark.at_least("users/s: trie ranking / generate()", rate(TRIE) / rate(STRAIGHT), 5)
    benchmark.at_least("users/s: trie ranking / title likelihood", rate(TRIE) / rate(LIKELIHOOD), 1)
    benchmark.at_least("hit@1: trie ranking - free generation", hits(TRIE) - hits(FREE), 0)
    benchmark.at_least("hit@1: trie ranking - title likelihood", hits(TRIE) - hits(LIKELIHOOD), -0.01)
    benchmark.at_most("padding %, trie ranking", benchmark.mean("padding %", way=TRIE), 5)


class Recorder(Console):
    """Keeps the numbers that the last phase closed with."""

    last: Phase

    @contextmanager
    def phase(self, verb: str) -> Iterator[Phase]:
        with super().phase(verb) as self.last:
            yield self.last


def end_to_end(benchmark: Benchmark, folder: Path, scorer: Scorer, seed: int, workers: int) -> None:
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
        llm=scorer.config,
        nightly={"output": f"s3://{NAME}/recommendations"},
        workers={"num_workers": workers},
        storage={"endpoint_url": endpoint, "region": "us-east-1", "addressing_style": "path"},
    )
    users = len(Sequences.read(open_storage(str(folder)).at("sequences")))
    console, started = Recorder(benchmark.console.log_json), time.perf_counter()
    nightly(config, console, DATE)
    seconds = time.perf_counter() - started
    facts = {name: value for name, value in console.last.numbers.items() if name.endswith(("/s of a worker", "%"))}
    benchmark.measured({"way": f"nightly job, {workers} workers", "trial": 0}, {"users/s": users / seconds, **facts})
    ray.shutdown()
    server.stop()


def as_large_as(benchmark: Benchmark, llm: Any, scorer: Scorer, cases: Cases, trials: int) -> tuple[float, float]:
    """Another LLM, of random weights, on the same prompts: what a model of its size would cost.

    Returns:
        the share of the device's own matmul rate that trie ranking's matrix products reach (MFU), and how many times
        faster than free generation it is, when texts are as long as the titles.
    """
    builder = scorer.ranker(soft=True).builder
    assert isinstance(builder, PromptBuilder)
    embedding, budget = llm.get_input_embeddings().weight, scorer.config.tokens_per_batch
    user_BH, item_NH = (
        torch.zeros(count, embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
        for count in (len(cases), scorer.bundle.catalogue.num_items + 1)
    )
    soft = SoftTokens(user_BH, item_NH)
    title_tokens = round(float(builder.titles.lengths[cases.candidates_BC[:, 0]].mean())) + 1
    ceiling = matmul_rate(embedding.device, embedding.dtype)
    read_weights = sum(
        module.weight.numel() for module in llm.base_model.modules() if isinstance(module, torch.nn.Linear)
    )
    labels, shares, ratios = {"weights": f"{read_weights / 1e9:.2g}B"}, [], []
    for trial in range(-1, trials):
        ranker, started = Ranker(llm, builder, budget), now()
        ranker.log_probabilities(cases.histories, cases.candidates_BC, soft)
        ranked, generator = now(), Generator(llm, builder.end, budget)
        generator.free(builder.build(cases.histories, cases.candidates_BC), soft, title_tokens)
        ranking, generating = ranked - started, now() - ranked
        if trial < 0:  # a warm-up
            continue
        # A multiplication and an addition a weight and token; attention and the few logits are not counted.
        shares.append(2 * read_weights * ranker.tokens / ranking / ceiling)
        ratios.append(generating / ranking)
        for way, read, seconds in ((TRIE, ranker, ranking), (FREE, generator, generating)):
            numbers = {"users/s": len(cases) / seconds, "tokens/s": read.tokens / seconds}
            benchmark.measured({"way": way, **labels, "trial": trial}, numbers)
        benchmark.measurements[-2][1]["MFU %"] = 100 * shares[-1]
    return median(shares), median(ratios)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of one large product, the best of ten."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = now()
        left @ right
        best = min(best, now() - started)
    return 2 * size**3 / best


def opt_67b() -> Any:
    """OPT-6.7B's shape with random weights, in bfloat16 on the GPU."""
    from transformers import OPTConfig, OPTForCausalLM

    shape = OPTConfig(
        hidden_size=4096, word_embed_proj_dim=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return OPTForCausalLM(shape).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)


def small_run(root: Path, console: Console) -> Path:
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
        standin_llm={"steps": 0, "vocab_size": 400},
        teacher={"epochs": 1, "dim": 16},
        alignment={"epochs": 1, "joint_dim": 16},
        prompt={"max_history": 3},
        projection={"epochs": 1, "batch_size": 32, "max_prompts_per_pass": 16, "num_candidates": 6},
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
    storage = open_storage(str(folder))
    cases = Cases.select(
        read_table(storage.at("evaluation_cases")), Sequences.read(storage.at("sequences")), "test", "random"
    )
    return cases.take(np.arange(min(users, len(cases))))


def now() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main(
    run: Annotated[Path | None, typer.Option(help="a run with a bundle; default: a small generated one")] = None,
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
    benchmark = Benchmark(NAME, console, {"run": run, "workers": workers, **plan}, root, quick, repeat="trial")
    with errors_in_one_line():
        folder = run or small_run(root / NAME, console)
        storage = open_storage(str(folder))
        bundle = load_bundle(storage, latest_bundle(storage))
        seed, scorer = int(bundle.config["seed"]), Scorer(bundle, bundle.llm)
        cases = stored_cases(folder, plan["users"])
        compare(benchmark, scorer, cases, seed, plan["trials"])
        if job:
            end_to_end(benchmark, folder, scorer, seed, workers)
        if torch.cuda.is_available():
            share, ratio = as_large_as(benchmark, opt_67b(), scorer, cases, plan["trials"])
            benchmark.at_least("MFU, OPT-6.7B's shape: trie ranking / the GPU's matmul", share, 0.6)
            benchmark.at_least("users/s, OPT-6.7B's shape: trie ranking / free generation", ratio, 5)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
