"""The runs that `benchmarks.llm_srec` compares: a config's own, and those of rows, each as far as it differs from that.

Knows which steps make them and which artifacts they share; leaves what is read off them to the tables.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from allmrec.core.artifacts import read_manifest
from allmrec.core.hashing import fingerprint
from allmrec.core.workspace import Workspace
from allmrec.readout.network import ReadoutConfig
from benchmarks.runs import SHARED, ConfigRuns, link
from jobs import train_baselines
from jobs.demo.sample_data import sample_data
from jobs.pipeline import TRAINING
from jobs.runtime.console import Console
from jobs.runtime.step import Step, load_step, resolved

SYSTEM, TEACHER, ALLMREC = "llm-srec", "teacher", "a-llmrec"
TRAINED = (*SHARED, Workspace.alignment, Workspace.projectors)
BASELINE, BUNDLE, EVALUATE = "train_baselines", "bundle", "evaluate"
WHOLE = (*TRAINING[:-1], BASELINE, BUNDLE, EVALUATE)
# The key without which each of the default's departures from the paper's preset is.
CHOICES: dict[str, list[str] | None] = {
    "LLM-SRec": [],
    "one readout": ["readouts_per_prompt=1"],
    "own negatives": ["negatives=own"],
    "no temperature": ["temperature=null"],
    "no layer norm": ["layer_norm=false"],
    "soft tokens as they come": ["soft_token_scale=null"],
    "paper's preset": None,
}


class Runs(ConfigRuns):
    """A config's runs: the one in its own workspace, and those of rows, each as far as it differs from that."""

    def __init__(self, path: Path, overrides: list[str], root: Path, console: Console):
        super().__init__(path, overrides, root, console)
        if self.base.llm_srec is None:
            raise ValueError(f"{path} does not name LLM-SRec; add --set 'baselines={{llm_srec: {{}}}}'")
        self.readout: ReadoutConfig = self.base.llm_srec

    def finished(self) -> Workspace:
        """The config's own run, evaluated; steps that are up to date are skipped."""
        return self.made(self.base, steps(WHOLE))

    def row(self, changes: list[str]) -> Workspace:
        """LLM-SRec trained with some keys changed; its systems are that one and the teacher."""
        compared = [f"evaluation.systems=[{TEACHER}, {SYSTEM}]", f"evaluation.baseline={TEACHER}"]
        config = self.changed(f"row-{fingerprint(changes)[:8]}", [*changes, *compared])
        if read_manifest(self.base.workspace.llm_srec).config == resolved(config, train_baselines.SECTIONS):
            return self.base.workspace
        link(config, dict.fromkeys(TRAINED, self.base))
        return self.made(config, steps((BASELINE, BUNDLE, EVALUATE)))

    def shown_shuffled(self, systems: list[str]) -> Workspace:
        """The config's own models, shown histories in a drawn order as well."""
        config = self.changed("order-true", self._shuffled(systems))
        link(config, dict.fromkeys((*TRAINED, Workspace.llm_srec), self.base))
        return self.made(config, steps((BUNDLE, EVALUATE)))

    def trained_shuffled(self, systems: list[str]) -> Workspace:
        """Everything again, trained on histories in a drawn order."""
        changes = [*self._shuffled(systems), "evaluation.split.shuffle_training=true"]
        return self.made(self.changed("order-shuffled", changes), steps(WHOLE))

    def _shuffled(self, systems: list[str]) -> list[str]:
        compared = [f"evaluation.systems=[{', '.join(systems)}]", f"evaluation.baseline={TEACHER}"]
        return ["evaluation.shuffle=true", *compared]


def steps(modules: tuple[str, ...]) -> Iterator[Step]:
    return (load_step(f"jobs.{module}") for module in modules)


def rows_of(table: str, config: ReadoutConfig) -> dict[str, list[str]]:
    """The keys that make each row; the first one is the config's."""

    def without(*losses: str) -> list[str]:
        kept = [loss for loss in config.losses if loss not in losses]
        return [f"baselines.llm_srec.losses=[{', '.join(kept)}]"]

    if table == "8":
        return {
            "LLM-SRec": [],
            "w/o L_uniform": without("uniform"),
            "w/o L_distil, L_uniform": without("distil", "uniform"),
        }
    schedule = [f"{key}: {getattr(config, key)}" for key in ("epochs", "checkpoint_every_steps", "validation_users")]
    paper = [f"baselines.llm_srec={{preset: paper, {', '.join(schedule)}}}"]
    rows = {
        name: paper if changes is None else [f"baselines.llm_srec.{change}" for change in changes]
        for name, changes in CHOICES.items()
    }
    return rows | {f"w/o {loss}": without(loss) for loss in ("teacher-map", "teacher-scores") if loss in config.losses}


def small_config(root: Path, console: Console) -> Path:
    """Of a generated shop, and the stand-ins that come with the package, hardly trained."""
    folder = root / "sample"
    if not (folder / "movies/items.parquet").exists():
        sample_data(str(folder), users=60, items=60)
    sections = {
        "name": "finished",
        "root": str(root),
        "data": {name: {"paths": [str(folder / f"movies/{name}.parquet")]} for name in ("interactions", "items")}
        | {"num_shards": 2},
        "text": {"model": "standins/encoder"},
        "llm": {"name": "standins/llm"},
        "teacher": {"epochs": 1, "dim": 16},
        "alignment": {"epochs": 1, "joint_dim": 16},
        "prompt": {"max_history": 3},
        "projection": {"epochs": 1, "batch_size": 32, "num_candidates": 6},
        "baselines": {"llm_srec": {"epochs": 1, "dim": 16, "hidden": 32}},
        "evaluation": {"num_negatives": 5},
        "workers": {"num_workers": 1},
    }
    path = root / "config.yaml"
    path.write_text(json.dumps(sections))  # JSON is YAML
    return path
