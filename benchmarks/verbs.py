"""Every verb on a generated store, under a limit of memory: what the driver and the workers hold, by number of items.

    python -m benchmarks.verbs --items 2_000_000 --items 4_000_000 --users 200_000 --limit-gb 12
    python -m benchmarks.verbs --items 2_000_000 --verb prepare --verb embed

Items have texts of a kilobyte. The encoder and the LLM are tiny and random, so the tables by item are what there is to
hold. A verb is a process of its own, in a control group with all that it starts: the group's pages of files and
/dev/shm count, too, and a process that needs more is killed (that takes root; `--limit-gb 0` sets no limit). "MB" are
the most of all processes together, pages of files included; "MB driver" and "MB worker", of the worker that has most,
are without these. Trainings are of one epoch or a small sample: their memory does not depend on how long they take.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import pyarrow as pa
import typer
import yaml

from allmrec.demo.encoder import build_encoder
from allmrec.demo.llm import train_tokenizer
from allmrec.llm.prompt import PromptConfig
from benchmarks.generated_run import drawn_llm
from benchmarks.memory import limited, peak
from benchmarks.report import ROOT, Benchmark, Row
from jobs.runtime.command import errors_in_one_line
from jobs.runtime.console import Console

NAME = "verbs"
_MOREC = ["--set", "baselines={morec: {max_history: 20}}"]
_CTRL = ["--set", "baselines={ctrl: {max_history: 20, pretraining: {epochs: 1, batch_size: 4096}}}"]
_TALLREC = ["--set", "baselines={tallrec: {epochs: 1, max_users: 512, validation_users: 64}}"]
_FINE_TUNED = ["--set", "alignment.text_encoder=fine-tuned", "--set", "alignment.max_users=20_000"]
_LLM_SREC = ["--set", "baselines={llm_srec: {epochs: 1, max_users: 512, validation_users: 64}}"]
VERBS = {  # by name, in their order: what the console is told
    "prepare": ["prepare"],
    "embed": ["embed"],
    "train-cf": ["train-cf"],
    "train-alignment": ["train-alignment"],
    "train-projection": ["train-projection"],
    "train-baselines (MoRec)": ["train-baselines", *_MOREC],
    "train-baselines (CTRL)": ["train-baselines", *_CTRL],
    "train-baselines (TALLRec)": ["train-baselines", *_TALLREC],
    "bundle build": ["bundle", "build"],
    "evaluate": ["evaluate"],
    "explain": ["explain", "--task", "favourite-genre"],
    "nightly (teacher)": ["nightly", "--date", "2026-11-20"],
    "nightly (teacher), a day later": ["nightly", "--date", "2026-11-21"],
    "nightly (llm)": ["nightly", "--date", "2026-11-22", "--limit", "2000", "--set", "nightly.ranker=llm"],
    "recommendations verify": ["recommendations", "verify"],
    "expire": ["expire", "--set", "retention.runs=1", "--set", "retention.text_cache=current"],
    "daily": ["daily", "--date", "2026-11-23"],
    # The LLM reads every item.
    "train-baselines (LLM-SRec)": ["train-baselines", *_LLM_SREC],
    "bundle build (LLM-SRec)": ["bundle", "build", *_LLM_SREC],
    "nightly (llm-srec)": [
        *("nightly", "--date", "2026-11-24", "--limit", "2000", "--set", "nightly.ranker=llm-srec"),
        *_LLM_SREC,
    ],
    "train-alignment (fine-tuned)": ["train-alignment", *_FINE_TUNED],
}
ROWS_PER_USER, ITEMS_PER_FILE, ROWS_PER_FILE = 20, 100_000, 1_000_000
TEXT_DIM = 64
WORDS, TITLE_WORDS, TEXT_WORDS = 5000, 5, 155  # different ones, and of a title and a text of a kilobyte
OPENED, SECONDS = 1_700_000_000, 2 * 365 * 86_400


class GeneratedStore:
    """A log and a catalogue, with an encoder and an LLM, in a folder of its own; kept for the next run."""

    def __init__(self, root: Path, items: int, users: int, text_words: int = TEXT_WORDS, seed: int = 0):
        self.folder = root / f"store-{items}-{users}-{text_words}-{seed}"
        self.items, self.users, self.text_words, self.seed = items, users, text_words, seed

    def write(self) -> None:
        """Unless it exists."""
        if self.folder.exists():
            return
        draft = self.folder.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        (draft / "items").mkdir(parents=True)
        (draft / "log").mkdir()
        random = np.random.default_rng(self.seed)
        words = np.array(["".join(letters) for letters in random.choice([*"abcdefghijklmnoprstu"], (WORDS, 6))])
        for number, first in enumerate(range(0, self.items, ITEMS_PER_FILE)):
            catalogue = self._items(np.arange(first, min(first + ITEMS_PER_FILE, self.items)), words, random)
            catalogue.write_parquet(draft / f"items/{number:05d}.parquet")
            if not number:
                texts = catalogue["description"][:2000].to_arrow().cast(pa.string())
                titles = catalogue["title"][:2000].to_arrow().cast(pa.string())
        rows = self.users * ROWS_PER_USER
        for number, first in enumerate(range(0, rows, ROWS_PER_FILE)):
            self._events(min(ROWS_PER_FILE, rows - first), random).write_parquet(draft / f"log/{number:05d}.parquet")
        build_encoder(texts, draft / "encoder", self.seed, TEXT_DIM)
        tokenizer = train_tokenizer(titles, [PromptConfig()], 2000)
        tokenizer.save_pretrained(draft / "llm")
        drawn_llm(len(tokenizer), 64, 2).save_pretrained(draft / "llm")
        draft.rename(self.folder)

    def config(self, object_store_mb: int) -> dict[str, Any]:
        folder = str(self.folder)
        return {
            "name": "run",
            "root": folder,
            "data": {
                "interactions": {"paths": [f"{folder}/log/*.parquet"]},
                "items": {"paths": [f"{folder}/items/*.parquet"]},
                "num_shards": 16,
            },
            "text": {"model": f"{folder}/encoder"},
            "llm": {"name": f"{folder}/llm", "dtype": "float32"},
            "teacher": {"epochs": 1, "eval_every": 1, "batch_size": 8192, "validation_users": 1000},
            "alignment": {"epochs": 1, "batch_size": 1024},
            "projection": {"epochs": 1, "max_users": 512, "validation_users": 64},
            "evaluation": {"max_users": 500, "systems": ["random", "popularity", "teacher", "a-llmrec"]},
            "nightly": {"ranker": "teacher", "approximate_above": 500_000},
            "workers": {"num_workers": 2, "object_store_mb": object_store_mb},
        }

    def _items(self, numbers: np.ndarray, words: np.ndarray, random: np.random.Generator) -> pl.DataFrame:
        count = TITLE_WORDS + self.text_words
        text = pl.Series(words[random.integers(0, WORDS, (len(numbers), count))], dtype=pl.Array(pl.String, count))
        frame = pl.DataFrame({"number": numbers, "words": text.arr.to_list()})
        return frame.select(
            item_id=_ids("B", numbers),
            title=pl.col("words").list.head(TITLE_WORDS).list.join(" "),
            description=pl.col("words").list.tail(self.text_words).list.join(" "),
            categories=pl.concat_list(pl.format("Aisle {}", pl.col("number") % 50)),
        )

    def _events(self, count: int, random: np.random.Generator) -> pl.DataFrame:
        item = (self.items * random.random(count) ** 2).astype(np.int64)
        time_ = OPENED + (random.random(count) * SECONDS).astype(np.int64)
        user = random.integers(0, self.users, count)
        return pl.DataFrame({"user_id": _ids("A", user), "item_id": _ids("B", item), "timestamp": time_})


def _ids(letter: str, numbers: np.ndarray) -> pl.Series:
    """Text that is not in the numbers' order."""
    mixed = numbers.astype(np.uint64) * np.uint64(2_654_435_761) % np.uint64(2**32)
    return pl.select(pl.format(f"{letter}{{}}", pl.lit(pl.Series("id", mixed)))).to_series()


def measure(store: GeneratedStore, verb: str, config: Path, limit_mb: float) -> Row:
    """Run a verb in a process of its own. Raises ValueError where it fails, or is killed for its memory."""
    command, *more = VERBS[verb]
    told = [*_command(command, more), "--config", str(config), "--log-json"]
    log, started = store.folder / f"{verb.replace(' ', '-')}.log", time.monotonic()
    with log.open("w") as out:
        if limit_mb:
            with limited(f"allmrec-{NAME}-{os.getpid()}", limit_mb) as members:
                joined = ["sh", "-c", f'echo $$ > {members} && exec "$@"', "sh", *told]
                process = subprocess.Popen(joined, stdout=out, stderr=out)
                memory = peak(process, interval_s=1)
                _await_end_of(members)
        else:
            process = subprocess.Popen(told, stdout=out, stderr=out)
            memory = peak(process, interval_s=1)
    if process.returncode:
        raise ValueError(f"{verb} ended with code {process.returncode} on {store.items:,} items; see {log}")
    return {
        "seconds": round(time.monotonic() - started),
        "MB driver": round(memory.driver),
        "MB worker": round(memory.worker),
        "MB object store": round(memory.shared),
        "MB": round(memory.total),
    }


def _command(command: str, more: Iterable[str]) -> list[str]:
    return [sys.executable, "-m", "allmrec", command, *more]


def _await_end_of(members: Path) -> None:
    """What a verb started may end a little later."""
    for _ in range(300):
        if not members.read_text().split():
            return
        time.sleep(0.1)


def main(
    items: Annotated[list[int] | None, typer.Option(help="several for several; quick: 2,000 and 4,000")] = None,
    users: Annotated[int, typer.Option(help="quick: 500")] = 200_000,
    text_words: Annotated[int, typer.Option(help="of an item's text")] = TEXT_WORDS,
    verb: Annotated[list[str] | None, typer.Option(help="default: all, in their order")] = None,
    limit_gb: Annotated[float, typer.Option(help="of a verb with all it starts; 0: none")] = 0,
    object_store_mb: Annotated[int, typer.Option(help="of Ray")] = 1024,
    quick: Annotated[bool, typer.Option("--quick", help="sizes for a minute; bars are not judged")] = False,
    root: Annotated[Path, typer.Option(help="folder that holds what benchmarks write")] = ROOT,
    log_json: Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")] = False,
) -> None:
    """Every verb on a generated store: seconds, and memory by process."""
    sizes, users = sorted(items or ([2000, 4000] if quick else [2_000_000, 4_000_000])), 500 if quick else users
    verbs = verb or [*VERBS]
    settings = {
        "items": sizes,
        "users": users,
        "limit_gb": limit_gb,
        "text_words": text_words,
        "text_dim": TEXT_DIM,
        "verbs": verbs,
    }
    benchmark = Benchmark(NAME, Console(log_json), settings, root, quick, repeat="trial")
    with errors_in_one_line():
        if unknown := set(verbs) - {*VERBS}:
            raise ValueError(f"no verb {', '.join(sorted(unknown))}; there are {', '.join(VERBS)}")
        for size in sizes:
            store = GeneratedStore((root / NAME).absolute(), size, users, text_words)
            store.write()
            config = store.folder / "config.yaml"
            config.write_text(yaml.safe_dump(store.config(object_store_mb)))
            for name in verbs:
                benchmark.measured({"verb": name, "items": size}, measure(store, name, config, limit_gb * 1024))
                benchmark.write()
    for name in verbs if len(sizes) > 1 else []:
        fewest, most = (benchmark.mean("MB driver", verb=name, items=size) for size in (sizes[0], sizes[-1]))
        benchmark.at_most(f"MB of the driver of {name}: {sizes[-1]:,} / {sizes[0]:,} items", most / fewest, 1.1)
    benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
