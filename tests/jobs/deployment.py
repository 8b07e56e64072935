"""A shop whose log grows every day, and deployments that recommend from it, with tiny untrained models, without Ray."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from typer.testing import CliRunner, Result

from allmrec.alignment.network import AlignmentNetwork, save_alignment
from allmrec.bundle.description import MODELS
from allmrec.cf.teacher import load_teacher
from allmrec.core.artifacts import read_manifest, writing
from allmrec.core.storage import Storage
from allmrec.data.trained_items import write_trained_items
from allmrec.demo.encoder import build_encoder
from allmrec.text.encoder import encoder_identity
from jobs.cli import app
from jobs.config import Config
from tests.evaluation.tiny import NUM_ITEMS, TITLES, tiny_config, write_tiny_workspace

FIRST = date(2026, 11, 1)
TEXT_DIM = 8
_NIGHTLY = {"num_candidates": 8, "top_k": 5, "lease_s": 0.3}


@dataclass
class GrowingShop:
    """Files of a log, a catalogue and a list of excluded users in a folder."""

    folder: Path
    users: int = 40

    def __post_init__(self) -> None:
        (self.folder / "log").mkdir()
        self.write_items()
        self.exclude()

    def write_day(self, number: int) -> None:
        """A day's interactions of a part of the users; each day some come for the first time."""
        rng, count = np.random.default_rng(number), self.users * (3 if number == 0 else 1)
        noon = datetime(FIRST.year, FIRST.month, FIRST.day, 12, tzinfo=UTC) + timedelta(number)
        table = pa.table(
            {
                "user_id": [f"user-{n}" for n in rng.integers(0, self.users + 3 * number, count)],
                "item_id": [f"item-{n:02d}" for n in rng.integers(0, NUM_ITEMS, count)],
                "timestamp": pa.array([noon + timedelta(seconds=n) for n in range(count)], pa.timestamp("us", "UTC")),
            }
        )
        pq.write_table(table, self.day(number))

    def day(self, number: int) -> Path:
        return self.folder / f"log/day-{number:03d}.parquet"

    def write_items(self, new: int = 0, gone: Sequence[int] = (), unavailable: Sequence[int] = ()) -> None:
        """The catalogue: the items of the training and some new ones, without some."""
        titles = [*TITLES, *(f"Moonfall Reborn {n}" for n in range(new))]
        rows = [
            {"item_id": f"item-{n:02d}", "title": title, "available": n not in unavailable}
            for n, title in enumerate(titles)
            if n not in gone
        ]
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "items.parquet")

    def exclude(self, *users: str) -> None:
        (self.folder / "excluded.txt").write_text("".join(f"{user}\n" for user in ("user-0", *users)))

    @property
    def sources(self) -> dict[str, Any]:
        return {
            "interactions": {"paths": [str(self.folder / "log")]},
            "items": {"paths": [str(self.folder / "items.parquet")]},
            "excluded_users": {"paths": [str(self.folder / "excluded.txt")], "format": "csv", "delimiter": "\x1f"},
        }


@dataclass
class Deployment:
    """One config file and what it makes; the console's verbs run in this process."""

    path: Path
    config: Config

    @classmethod
    def create(cls, shop: GrowingShop, name: str, llm: Any, tokenizer: Any, **sections: dict[str, Any]) -> "Deployment":
        """With trained models, before the first night. The first one makes them, others of the same shop copy them."""
        base = tiny_config(shop.folder)
        if not Path(base.llm.name).exists():
            write_tiny_workspace(base, llm, tokenizer)
            shutil.rmtree(base.text.model)
            build_encoder(pa.array([title or "" for title in TITLES]), base.text.model, dim=TEXT_DIM)
            _align_with_encoder(base)
        trained = base.workspace.storage
        settings = base.model_dump(mode="json") | {"name": name}
        for some in ({"nightly": _NIGHTLY, "data": shop.sources}, sections):
            for section, values in some.items():
                settings[section] = settings[section] | values
        config = Config(**settings)
        for entry in [entry for entry in trained.list() if entry.key.split("/")[0] in MODELS]:
            config.workspace.storage.write(entry.key, trained.read(entry.key))
        path = shop.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return cls(path, config)

    @property
    def output(self) -> Storage:
        return self.config.workspace.recommendations

    def call(self, *verb: str, **settings: Any) -> Result:
        """A verb with its options, and overrides of the config by `section__key`."""
        overrides = [f"--set={name.replace('__', '.')}={json.dumps(value)}" for name, value in settings.items()]
        return CliRunner().invoke(app, [*verb, "--config", str(self.path), "--log-json", *overrides])

    def daily(self, day: date, *options: str, **settings: Any) -> Result:
        return self.call("daily", "--date", str(day), *options, **settings)


def _align_with_encoder(config: Config) -> None:
    """A random Stage-1 for the encoder's texts, in the place of one for texts of no encoder."""
    alignment = config.workspace.alignment
    manifest = read_manifest(alignment)
    teacher = load_teacher(config.workspace.teacher)
    torch.manual_seed(2)
    network = AlignmentNetwork(config.teacher.dim, TEXT_DIM, config.alignment.joint_dim)
    joint = network.joint(teacher.item_embeddings, torch.randn(len(teacher.item_embeddings), TEXT_DIM))
    with writing(alignment, "alignment", "test", manifest.config) as out:
        out.add(save_alignment(alignment, network, *joint))
        out.stats["encoder"] = encoder_identity(config.text, "cpu")
        out.add(write_trained_items(alignment, config.workspace.items))


def events(result: Result) -> list[dict[str, Any]]:
    """What a verb that ended well has printed."""
    assert result.exit_code == 0, (result.output, result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


def failure(result: Result) -> str:
    """What a verb that failed has said."""
    assert result.exit_code != 0, result.output
    return json.loads(result.stdout.splitlines()[-1])["error"]


def ran(result: Result) -> dict[str, bool]:
    """The steps in order, and whether each ran or was skipped."""
    seen = [one for one in events(result) if one["event"] in ("done", "skip")]
    return {one["verb"]: one["event"] == "done" for one in seen}
