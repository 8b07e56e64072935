"""What each part of A-LLMRec is worth: the ablations of the paper's Tables 8 and 9, and training on all items.

    python -m benchmarks.ablations --config jobs/configs/demo.yaml --table 8
    python -m benchmarks.ablations --config jobs/configs/demo.yaml --table 9 --seeds 0,1,2

Needs a finished run (`allmrec run` or `allmrec demo`). Each row of a table is its config with a key or two changed,
trained from there in a run of its own over the same prepared tables and the same teacher; a row whose config is the one
that the run was made with is that run. Beside each row stands its untrained one, whose projectors are where Stage-2
started (`projection.start`): what training added. The models are whatever the config names: figures of stand-ins are
not the paper's.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from allmrec.artifacts import read_manifest
from allmrec.storage import open_storage
from benchmarks.report import ROOT, Benchmark, Row
from jobs import bundle, evaluate, train_alignment, train_projection
from jobs.cli import errors_in_one_line
from jobs.config import Config, load_config
from jobs.console import Console
from jobs.step import execute, resolved

NAME = "ablations"
SHARED = ("items", "sequences", "evaluation_cases", "rejected", "item_text_embeddings", "teacher")
STEPS = (train_alignment.STEP, train_projection.STEP, bundle.STEP, evaluate.STEP)
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
        "random joint embedding": ["projection.item_input=random", "projection.start=ordinary"],
        "MLP-LLM": ["projection.item_input=teacher"],
    },
    "all": {
        "A-LLMRec": [],
        "A-LLMRec_all": ["alignment.targets=all", "projection.targets=all"],
    },
}
BESIDE = ("random", "popularity", "teacher", "llm-only")  # of the finished run


def train(config: Config, base: Config, console: Console) -> list[Row]:
    """Train and evaluate one row in a fresh run, as far as it differs from the finished one. Returns its metrics."""
    storage, finished = open_storage(base.run_uri, base.storage), Path(base.run_uri)

    def made_with(config: Config, artifact: str) -> bool:
        recorded = read_manifest(storage.at(artifact)).config
        return recorded == resolved(config, tuple(section for section in recorded if section != "seed"))

    kept = made_with(config, "alignment")
    if kept and made_with(config, "projectors") and made_with(base, "evaluation"):
        return json.loads((finished / "metrics.json").read_text())
    folder = Path(config.run_uri)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for artifact in (*SHARED, "alignment") if kept else SHARED:
        (folder / artifact).symlink_to((finished / artifact).resolve())
    for step in (train_projection.STEP, bundle.STEP, evaluate.STEP) if kept else STEPS:
        execute(step, config, console)
    return json.loads((folder / "metrics.json").read_text())


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
        base = load_config(config, overrides or [])
        for seed in seeds.split(","):
            for number, name in enumerate(chosen):
                changed = [
                    *(overrides or []),
                    *TABLES[table][name],
                    f"seed={seed}",
                    f"name=table-{table}-{number}",
                    f"root={root / NAME}",
                    "evaluation.systems=[a-llmrec, a-llmrec-untrained]",
                ]
                metrics = train(load_config(config, changed), base, console)
                for system, row in (("a-llmrec", name), ("a-llmrec-untrained", f"{name}, untrained")):
                    benchmark.measured({"row": row, "seed": seed}, figures(metrics, system))
        finished = json.loads((Path(base.run_uri) / "metrics.json").read_text())
        for system in BESIDE:
            benchmark.measured({"row": system, "seed": str(base.seed)}, figures(finished, system))
        benchmark.finish()


if __name__ == "__main__":
    typer.run(main)
