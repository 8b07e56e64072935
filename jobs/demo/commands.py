"""The console's commands of the demo: sample data, stand-in models, public data sets, and the demo itself."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli import mount
from jobs.runtime.command import ConfigFile, LogJson, Overrides, run_date
from jobs.runtime.console import Console

STANDINS = {
    "encoder": ("jobs.demo.standin_encoder", "Build a small SentenceTransformer from the catalogue's texts."),
    "llm": ("jobs.demo.standin_llm", "Build a tiny OPT over the catalogue's titles that recommends by soft tokens."),
}

standin = typer.Typer(no_args_is_help=True, help="Build stand-in models for machines without the real ones.")


def add_demo(app: typer.Typer) -> None:
    """Add the demo's commands to the product's."""
    app.command()(demo)
    app.command("sample-data")(sample_data)
    app.command("fetch-data")(fetch_data)
    mount(standin, STANDINS)
    app.add_typer(standin, name="standin")


def demo(
    overrides: Overrides,
    config: ConfigFile = Path("jobs/configs/demo.yaml"),
    log_json: LogJson = False,
) -> None:
    """Run everything on a sample store with stand-in models, and show the result."""
    from jobs.config import load_config
    from jobs.demo.demo import demo as run_demo

    settings = load_config(config, overrides)
    run_demo(settings, Console(log_json), run_date(None, settings.nightly.timezone))


def sample_data(
    output: Annotated[str, typer.Option(help="folder or s3:// prefix to write")] = "runs/demo/input",
    users: Annotated[int, typer.Option(help="how many users")] = 3000,
    items: Annotated[int, typer.Option(help="how many items in each domain")] = 800,
    seed: Annotated[int, typer.Option(help="seed of all random draws")] = 0,
    dirty: Annotated[float, typer.Option(help="share of corrupted rows to add; 0.05: one in twenty")] = 0.0,
) -> None:
    """Write a sample store: catalogues and logs of two domains that share users."""
    from jobs.demo.sample_data import sample_data as write

    arguments: dict[str, Any] = {"output": output, "users": users, "items": items, "seed": seed, "dirty": dirty}
    write(**arguments)


def fetch_data(
    name: Annotated[str, typer.Argument(help="data set, e.g. movielens-1m or amazon-2014/Beauty")],
    to: Annotated[Path, typer.Option(help="folder to write its files to")],
    log_json: LogJson = False,
) -> None:
    """Download a public data set from its publisher; an interrupted download resumes."""
    from jobs.demo.fetch_data import fetch_data as fetch

    fetch(name, to, Console(log_json))


@standin.command("shipped")
def standin_shipped(
    folder: Annotated[Path, typer.Option(help="folder to write llm/ and encoder/ to")],
    seed: Annotated[int, typer.Option(help="seed of all random draws")] = 0,
) -> None:
    """Build the stand-ins shipped with the package, standins/llm and standins/encoder, and their model cards."""
    from jobs.demo.standin_shipped import ship

    ship(folder, seed)
