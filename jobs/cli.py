"""The console: `allmrec VERB --config FILE`. One verb, one file of `jobs/`; this one only parses and reports errors.

allmrec prepare --config jobs/configs/demo.yaml --dry-run
ray job submit -- python -m jobs.prepare --config jobs/configs/demo.yaml
"""

import codecs
import datetime
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO
from zoneinfo import ZoneInfo

import typer

from jobs.console import Console

if TYPE_CHECKING:
    from jobs.step import Step

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="YAML file of the deployment")]
Overrides = Annotated[list[str], typer.Option("--set", help="override a key: section.key=value")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check config and inputs, print the plan, touch nothing")]
LogJson = Annotated[bool, typer.Option("--log-json", help="JSON lines instead of progress bars")]
Force = Annotated[bool, typer.Option("--force", help="run even if nothing has changed")]
RunDate = Annotated[
    str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: today (nightly.timezone)")
]
PublishedDate = Annotated[str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: the current")]

# Verb → module and what `--help` says. Modules are imported when called, so that the console starts at once.
STEPS = {
    "prepare": ("jobs.prepare", "Read the log and the catalogue; write items, sequences and evaluation cases."),
    "embed": ("jobs.embed", "Embed the items' texts with SBERT."),
    "train-cf": ("jobs.train_cf", "Train the teacher."),
    "train-alignment": ("jobs.train_alignment", "Stage-1: align item and text embeddings."),
    "train-projection": ("jobs.train_projection", "Stage-2: train the projectors into the frozen LLM."),
    "transfer": (
        "jobs.transfer",
        "Take the models of a run of another catalogue for this one's items.",
    ),
    "evaluate": ("jobs.evaluate", "Score every system on the same cases; write metrics and a report."),
}
BUNDLE = {"build": ("jobs.bundle", "Gather what scoring needs into one verified, immutable bundle, and promote it.")}
STANDINS = {
    "encoder": ("jobs.standin_encoder", "Build a small SentenceTransformer from the catalogue's texts."),
    "llm": ("jobs.standin_llm", "Build a tiny OPT that can copy titles and be steered by soft tokens."),
}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
standin = typer.Typer(no_args_is_help=True, help="Build stand-in models for machines without the real ones.")
bundle = typer.Typer(no_args_is_help=True, help="Build bundles, look at them, and say which one is in use.")
recommendations = typer.Typer(no_args_is_help=True, help="Look after what the nightly runs published.")


class GaveUp(ValueError):
    """A job takes longer than it may. A thread of it may still be waiting inside Ray."""


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What a user can get wrong ends in one line and exit code 2; anything else keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        take_any_text(stream)
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        if isinstance(error, GaveUp):
            # At once: an orderly end would stop Ray under that thread, which then waits for it and ends with code 1.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        if os.environ.get("ALLMREC_TRACEBACK"):
            raise
        raise typer.Exit(2) from None


def take_any_text(stream: TextIO) -> None:
    """Let a console that is not UTF-8 show what it cannot as escapes, and say so: a job must not die of it."""
    encoding = codecs.lookup(stream.encoding or "ascii").name
    if not encoding.startswith("utf") and stream.errors != "backslashreplace":
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
        if stream is sys.stdout:
            print(
                f"note: this console is {encoding}, so some characters are escaped; PYTHONUTF8=1 helps", file=sys.stderr
            )


def command(step: Callable[[], "Step"]) -> Callable[..., None]:
    """The console command of a step."""

    def run(
        config: ConfigFile,
        overrides: Overrides = [],  # noqa: B006 - typer reads the default
        dry_run: DryRun = False,
        log_json: LogJson = False,
        force: Force = False,
    ) -> None:
        from jobs.config import load_config
        from jobs.step import execute

        with errors_in_one_line():
            execute(step(), load_config(config, overrides), Console(log_json), dry_run, force)

    return run


def main(step: "Step") -> None:
    """Entry of `python -m jobs.VERB`."""
    typer.run(command(lambda: step))


def load_step(module: str) -> "Step":
    return importlib.import_module(module).STEP


def _mount(target: typer.Typer, steps: dict[str, tuple[str, str]]) -> None:
    for verb, (module, text) in steps.items():
        target.command(verb, help=text)(command(lambda module=module: load_step(module)))  # type: ignore[misc]


_mount(app, STEPS)
_mount(bundle, BUNDLE)
_mount(standin, STANDINS)
app.add_typer(bundle, name="bundle")
app.add_typer(recommendations, name="recommendations")
app.add_typer(standin, name="standin")


@app.command()
def nightly(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    date: RunDate = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    full: Annotated[bool, typer.Option("--full", help="score everyone, also users for whom nothing changed")] = False,
    users: Annotated[str | None, typer.Option(help="table of user_id: these users alone (nightly.users)")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="a trial of so many users, published apart")] = None,
) -> None:
    """Score every user's candidates and publish the recommendations of one date."""
    from jobs.config import load_config
    from jobs.nightly import nightly as run_nightly

    with errors_in_one_line():
        asked = [f"nightly.users={users}"] if users else []
        settings = load_config(config, [*overrides, *asked])
        day = run_date(date, settings.nightly.timezone)
        run_nightly(settings, Console(log_json), day, dry_run, full, limit)


@app.command()
def explain(
    config: ConfigFile,
    task: Annotated[str, typer.Option(help="what to ask: favourite-genre")],
    overrides: Overrides = [],  # noqa: B006
    users: Annotated[int, typer.Option(min=1, help="about how many users, drawn by hash")] = 20,
    user: Annotated[list[str], typer.Option(help="about this one; may be repeated")] = [],  # noqa: B006
    dry_run: DryRun = False,
    log_json: LogJson = False,
    force: Force = False,
) -> None:
    """Ask the LLM about users in words, with A-LLMRec's soft tokens and without."""
    from jobs.config import load_config
    from jobs.explain import explain as run_explain

    with errors_in_one_line():
        run_explain(load_config(config, overrides), Console(log_json), task, users, user, dry_run, force)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    date: RunDate = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    force: Force = False,
) -> None:
    """All verbs in order; a step whose inputs and config have not changed is skipped."""
    from jobs.config import load_config
    from jobs.run import run as run_all

    with errors_in_one_line():
        settings = load_config(config, overrides)
        day = run_date(date, settings.nightly.timezone)
        run_all(settings, Console(log_json), day, dry_run, force)


@app.command()
def demo(
    config: ConfigFile = Path("jobs/configs/demo.yaml"),
    overrides: Overrides = [],  # noqa: B006
    log_json: LogJson = False,
) -> None:
    """A sample store, stand-in models, the whole run, and a look at the result."""
    from jobs.config import load_config
    from jobs.demo import demo as run_demo

    with errors_in_one_line():
        settings = load_config(config, overrides)
        run_demo(settings, Console(log_json), run_date(None, settings.nightly.timezone))


@standin.command("shipped")
def standin_shipped(
    folder: Annotated[Path, typer.Option(help="where to write llm/ and encoder/")],
    seed: int = 0,
) -> None:
    """Build the stand-ins that come with the package, standins/llm and standins/encoder, and their model cards."""
    from jobs.standin_shipped import ship

    with errors_in_one_line():
        ship(folder, seed)


@app.command("sample-data")
def sample_data(
    output: Annotated[str, typer.Option(help="folder or s3:// prefix")] = "runs/demo/input",
    users: int = 3000,
    items: int = 800,
    seed: int = 0,
    dirty: Annotated[float, typer.Option(help="fraction of dirty rows to add")] = 0.0,
) -> None:
    """Write a sample store: catalogues and logs of two domains that share users."""
    from jobs.sample_data import sample_data as write

    arguments: dict[str, Any] = {"output": output, "users": users, "items": items, "seed": seed, "dirty": dirty}
    with errors_in_one_line():
        write(**arguments)


@app.command("fetch-data")
def fetch_data(
    name: Annotated[str, typer.Argument(help="data set, e.g. movielens-1m or amazon-2014/Beauty")],
    to: Annotated[Path, typer.Option(help="folder for its files")],
    log_json: LogJson = False,
) -> None:
    """Download a public data set from its publisher; run again, it goes on where it was cut off."""
    from jobs.fetch_data import fetch_data as fetch

    with errors_in_one_line():
        fetch(name, to, Console(log_json))


def _call(
    module: str, function: str, config: Path, overrides: list[str], log_json: bool, *arguments: Any, **dates: str | None
) -> None:
    """`function(config, console, *arguments, **dates)` of a module of `jobs/`, which is imported now."""
    from jobs.config import load_config

    with errors_in_one_line():
        parsed = {name: run_date(text) if text else None for name, text in dates.items()}
        called = getattr(importlib.import_module(module), function)
        called(load_config(config, overrides), Console(log_json), *arguments, **parsed)


@bundle.command("show")
def bundle_show(
    config: ConfigFile,
    version: Annotated[str | None, typer.Argument(help="default: the one in use")] = None,
    overrides: Overrides = [],  # noqa: B006
    log_json: LogJson = False,
) -> None:
    """What a bundle was made of and by."""
    _call("jobs.bundle", "show", config, overrides, log_json, version)


@bundle.command("verify")
def bundle_verify(
    config: ConfigFile,
    version: Annotated[str | None, typer.Argument(help="default: the one in use")] = None,
    overrides: Overrides = [],  # noqa: B006
    log_json: LogJson = False,
) -> None:
    """Compare every file of a bundle with its hash."""
    _call("jobs.bundle", "verify", config, overrides, log_json, version)


@bundle.command("promote")
def bundle_promote(
    config: ConfigFile,
    version: Annotated[str, typer.Argument(help="`allmrec bundle list` has them")],
    overrides: Overrides = [],  # noqa: B006
    log_json: LogJson = False,
) -> None:
    """Let nightly runs and evaluations use this bundle, an older one too; the next day's run takes it."""
    _call("jobs.bundle", "promote_version", config, overrides, log_json, version)


@bundle.command("list")
def bundle_list(config: ConfigFile, overrides: Overrides = [], log_json: LogJson = False) -> None:  # noqa: B006
    """The bundles that are there, and which one is in use."""
    _call("jobs.bundle", "list_bundles", config, overrides, log_json)


@recommendations.command("show")
def recommendations_show(
    config: ConfigFile,
    user: Annotated[str, typer.Option(help="id of the user")],
    overrides: Overrides = [],  # noqa: B006
    date: PublishedDate = None,
    log_json: LogJson = False,
) -> None:
    """A user's recommendations."""
    _call("jobs.recommendations", "show", config, overrides, log_json, user, run_date=date)


@recommendations.command("list")
def recommendations_list(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    log_json: LogJson = False,
) -> None:
    """The dates that have a run, and which one is current."""
    _call("jobs.recommendations", "list_runs", config, overrides, log_json)


@recommendations.command("verify")
def recommendations_verify(
    config: ConfigFile,
    overrides: Overrides = [],  # noqa: B006
    date: PublishedDate = None,
    log_json: LogJson = False,
) -> None:
    """Compare every file of a run with its hash."""
    _call("jobs.recommendations", "verify", config, overrides, log_json, run_date=date)


@recommendations.command("rollback")
def recommendations_rollback(
    config: ConfigFile,
    date: Annotated[str, typer.Option(help="date of the run that shall be current, YYYY-MM-DD")],
    overrides: Overrides = [],  # noqa: B006
    log_json: LogJson = False,
) -> None:
    """Make the run of an earlier date the current one again."""
    _call("jobs.recommendations", "rollback", config, overrides, log_json, run_date=date)


@recommendations.command("expire")
def recommendations_expire(
    config: ConfigFile,
    keep: Annotated[int, typer.Option(min=1, help="how many of the newest dates stay")],
    overrides: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    log_json: LogJson = False,
) -> None:
    """Delete old dates; never the current run, or one that is newer."""
    _call("jobs.recommendations", "expire", config, overrides, log_json, keep, dry_run)


@recommendations.command("suppress")
def recommendations_suppress(
    config: ConfigFile,
    users: Annotated[str | None, typer.Option(help="list of user ids: lines, or Parquet, CSV, JSON lines")] = None,
    items: Annotated[str | None, typer.Option(help="list of item ids")] = None,
    least: Annotated[
        float | None, typer.Option("--min-known-fraction", min=0, max=1, help="of a list; 0 takes any")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    date: Annotated[str | None, typer.Option("--date", help="date of the run, YYYY-MM-DD; default: all")] = None,
    log_json: LogJson = False,
) -> None:
    """Take users and items out of published runs: those of two files, or the config's forgotten and suppressed ones."""
    _call("jobs.recommendations", "suppress", config, overrides, log_json, users, items, least, run_date=date)


def run_date(text: str | None, timezone: str = "UTC") -> datetime.date:
    """The date, or today in a time zone."""
    if text is None:
        return datetime.datetime.now(ZoneInfo(timezone)).date()
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"--date {text!r}: write it as YYYY-MM-DD") from None


if __name__ == "__main__":
    app()
