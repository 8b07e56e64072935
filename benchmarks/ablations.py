"""What each part of A-LLMRec is worth: the ablations of the paper's Tables 8 and 9, and training on all items.

    python -m benchmarks.ablations --config jobs/configs/demo.yaml --table 8
    python -m benchmarks.ablations --config jobs/configs/demo.yaml --table 9 --seeds 0,1,2

Needs a run that is trained as far as Stage-1 (`allmrec run` or `allmrec demo`). Each row of a table is the same config
with a key or two changed, trained from there in a run of its own over the same prepared tables and the same teacher.
The models are whatever the config names: figures of stand-ins are not the paper's.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from allmrec.artifacts import MANIFEST
from allmrec.storage import open_storage
from benchmarks.report import ROOT, Benchmark, Row
from jobs import bundle, evaluate, train_alignment, train_projection
from jobs.cli import errors_in_one_line
from jobs.config import Config, load_config
from jobs.console import Console
from jobs.step import execute

NAME = "ablations"
SHARED = ("items", "sequences", "evaluation_cases", "rejected", "item_text_embeddings", "teacher")
STAGE_1 = ("matching", "item_recon", "text_recon", "rec")
FINE_TUNED = ["alignment.text_encoder=fine-tuned"]


def without(*losses: str) -> list[str]:
    kept = [loss for loss in STAGE_1 if loss not in losses]
    return [*FINE_TUNED, f"alignment.losses=[{', '.join(kept)}]"]


# By table: the row's name in the paper, and the keys that make it.
TABLES: dict[str, dict[str, list[str]]] = {
    "8": {
        "A-LLMRec": FINE_TUNED,
        "w/o L_matching": without("matching"),
        "w/o L_item-recon & L_text-recon": without("item_recon", "text_recon"),
        "w/o L_rec": without("rec"),
        "Freeze SBERT": ["alignment.text_encoder=frozen"],
    },
    "9": {
        "A-LLMRec": [],
        "w/o user representation": ["prompt.user_slot=false"],
        "w/o joint embedding": ["prompt.item_slots=false"],
        "random joint embedding": ["projection.item_input=random"],
        "MLP-LLM": ["projection.item_input=teacher"],
    },
    "all": {
        "A-LLMRec": [],
        "A-LLMRec_all": ["alignment.targets=all", "projection.targets=all"],
    },
}
SYSTEMS = ("random", "teacher", "llm-only", "a-llmrec")


def train(config: Config, base: Path, console: Console) -> tuple[list[Row], Row]:
    """Train and evaluate one row in a fresh run. Returns its metrics and what its training says of itself."""
    folder = Path(config.run_uri)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for artifact in SHARED:
        (folder / artifact).symlink_to((base / artifact).resolve())
    for step in (train_alignment.STEP, train_projection.STEP, bundle.STEP, evaluate.STEP):
        execute(step, config, console)
    storage = open_storage(config.run_uri)
    facts = json.loads(storage.at("projectors").read(MANIFEST))["facts"]
    return json.loads(storage.read("metrics.json")), {"prompts": facts["prompts"], "loss": facts["losses"][-1]}


def figures(metrics: list[Row], system: str) -> Row:
    """Hit@1 by protocol and subset of one system, and the standard error of the first."""
    keys = {
        "Hit@1": ("random", "all"),
        "matched": ("matched", "all"),
        "swap": ("swap", "all"),
        "cold": ("random", "cold"),
    }
    found: dict[str, Any] = {}
    for name, (protocol, subset) in keys.items():
        for row in metrics:
            if [row[key] for key in ("system", "protocol", "subset", "metric")] == [system, protocol, subset, "hit@1"]:
                found |= {name: row["value"]} | ({"± se": row["stderr"]} if name == "Hit@1" else {})
    return found


def main(
    config: Annotated[Path, typer.Option(help="YAML file of the trained run")] = Path("jobs/configs/demo.yaml"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="path.to.key=value, for every row")] = None,
    table: Annotated[str, typer.Option(help=f"one of {', '.join(TABLES)}")] = "9",
    rows: Annotated[str | None, typer.Option(help="names of rows, by commas; default: all of the table's")] = None,
    seeds: Annotated[str, typer.Option(help="by commas: of Stage-1 and Stage-2; tables and teacher stay")] = "0",
    root: Annotated[Path, typer.Option(help="where results and the rows' runs go")] = ROOT,
    log_json: bool = False,
) -> None:
    """Train and evaluate the rows of an ablation table."""
    console = Console(log_json)
    benchmark = Benchmark(f"{NAME}-{table}", console, {"config": str(config), "table": table, "seeds": seeds}, root)
    with errors_in_one_line():
        if table not in TABLES:
            raise ValueError(f"--table {table!r}: there are {', '.join(TABLES)}")
        chosen = [name.strip() for name in rows.split(",")] if rows else list(TABLES[table])
        if unknown := set(chosen) - set(TABLES[table]):
            raise ValueError(f"--rows {sorted(unknown)}: table {table} has {', '.join(TABLES[table])}")
        base = Path(load_config(config, overrides or []).run_uri)
        for seed in seeds.split(","):
            beside: list[Row] = []
            for number, name in enumerate(chosen):
                changed = [
                    *(overrides or []),
                    *TABLES[table][name],
                    f"seed={seed}",
                    f"name=table-{table}-{number}",
                    f"root={yaml.safe_dump(str(root / NAME)).splitlines()[0]}",
                    f"evaluation.systems=[{', '.join(SYSTEMS)}]",
                ]
                metrics, facts = train(load_config(config, changed), base, console)
                benchmark.measured({"row": name, "seed": seed}, {**figures(metrics, "a-llmrec"), **facts})
                beside = beside or metrics
            for system in SYSTEMS[:-1]:
                benchmark.measured({"row": system, "seed": seed}, figures(beside, system))
        benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
