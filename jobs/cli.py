"""The console: `allmrec VERB --config FILE`. One verb, one file of `jobs/`; this one only parses.

allmrec prepare --config jobs/configs/demo.yaml --dry-run
ray job submit -- python -m jobs.prepare --config jobs/configs/demo.yaml
"""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.runtime.command import (
    AnyDate,
    BundleVersion,
    Commands,
    ConfigFile,
    DryRun,
    ExistingDate,
    Force,
    LogJson,
    Overrides,
    PublishedDate,
    Replace,
    RunDate,
    main,
    run_date,
)
from jobs.runtime.console import Console

# Verb → module and what `--help` says. Modules are imported when called, so that the console starts at once.
STEPS = {
    "prepare": ("jobs.prepare", "Read the log and the catalogue; write items, sequences and evaluation cases."),
    "embed": ("jobs.embed", "Embed the items' texts with the text encoder."),
    "train-cf": ("jobs.train_cf", "Train the teacher."),
    "train-alignment": ("jobs.train_alignment", "Stage-1: align item and text embeddings."),
    "train-projection": ("jobs.train_projection", "Stage-2: train the projectors into the frozen LLM."),
    "transfer": (
        "jobs.transfer",
        "Apply the models of another catalogue's workspace to this one's items.",
    ),
    "evaluate": ("jobs.evaluate", "Score every system on the same cases; write metrics and a report."),
}
BUNDLE = {
    "build": ("jobs.bundle", "Put what scoring needs into one verified, immutable bundle, and promote it."),
    "refresh": (
        "jobs.bundle:REFRESH",
        "Build a bundle from the models in use and the items as prepared now, and promote it.",
    ),
}


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Recommendations ranked by an LLM: prepare, train, bundle, then publish for every user, every night.",
)

bundle = typer.Typer(no_args_is_help=True, help="Build, inspect and promote bundles.")
models = typer.Typer(no_args_is_help=True, help="Import pretrained LLMs.")
recommendations = typer.Typer(no_args_is_help=True, help="Manage what the nightly runs published.")


def command(module: str) -> Callable[..., None]:
    """The console command of a module's step; the module is imported when it is called."""

    def run(
        config: ConfigFile,
        overrides: Overrides,
        dry_run: DryRun = False,
        log_json: LogJson = False,
        force: Force = False,
    ) -> None:
        from jobs.config import load_config_as
        from jobs.runtime.step import execute, load_step

        step = load_step(module)
        execute(step, load_config_as(step.config, config, overrides), Console(log_json), dry_run, force)

    return run


def mount(target: typer.Typer, steps: dict[str, tuple[str, str]]) -> None:
    for verb, (module, text) in steps.items():
        target.command(verb, help=text)(command(module))


mount(app, STEPS)
mount(bundle, BUNDLE)
app.add_typer(bundle, name="bundle")
app.add_typer(recommendations, name="recommendations")
app.add_typer(models, name="models")


@app.command("train-baselines")
def train_baselines(
    config: ConfigFile,
    overrides: Overrides,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    force: Force = False,
) -> None:
    """Train the systems that `baselines` names beside A-LLMRec: MoRec, CTRL, RECFORMER, TALLRec, LLM-SRec."""
    from jobs.baselines import steps
    from jobs.config import load_config
    from jobs.runtime.step import execute

    settings, console = load_config(config, overrides), Console(log_json)
    for step in steps(settings):
        execute(step, settings, console, dry_run, force)


@app.command()
def nightly(
    config: ConfigFile,
    overrides: Overrides,
    date: RunDate = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    full: Annotated[bool, typer.Option("--full", help="score all users again; reuse no rows")] = False,
    users: Annotated[str | None, typer.Option(help="score only the users of this list (nightly.users)")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="trial of about N users, published in a folder of its own")
    ] = None,
    replace: Replace = False,
    first: Annotated[
        str | None, typer.Option("--from", help="backfill: first date; published dates are skipped")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", help="backfill: last date; default: today")] = None,
) -> None:
    """Score every user's candidates and publish the recommendations of one date, or of the dates of a range."""
    from jobs.config import load_config
    from jobs.nightly import backfill
    from jobs.nightly import nightly as run_nightly

    requested = [f"nightly.users={users}"] if users else []
    settings, console = load_config(config, [*overrides, *requested]), Console(log_json)
    day = partial(run_date, timezone=settings.nightly.timezone)
    if first:
        if date:
            raise ValueError("--date is one date and --from begins a range; give one of them")
        backfill(settings, console, day(first), day(last), dry_run, full, limit, replace)
    elif last:
        raise ValueError("--to ends a range; give --from as well, or --date for one date")
    else:
        run_nightly(settings, console, day(date), dry_run, full, limit, replace)


@app.command()
def daily(
    config: ConfigFile,
    overrides: Overrides,
    date: RunDate = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    replace: Replace = False,
) -> None:
    """Do a night's work, for schedulers: prepare, embed, refresh the bundle, nightly, expire. Trains nothing."""
    from jobs.config import load_config
    from jobs.daily import daily as run_daily

    settings = load_config(config, overrides)
    run_daily(settings, Console(log_json), run_date(date, settings.nightly.timezone), dry_run, replace)


@app.command()
def expire(
    config: ConfigFile,
    overrides: Overrides,
    dry_run: DryRun = False,
    log_json: LogJson = False,
) -> None:
    """Delete what `retention` does not keep: old runs, trials, bundles, encoders, checkpoints, caches."""
    _call("jobs.expire", "expire", config, overrides, log_json, dry_run)


@app.command()
def explain(
    config: ConfigFile,
    task: Annotated[str, typer.Option(help="what to ask: favourite-genre")],
    overrides: Overrides,
    users: Annotated[
        int, typer.Option(min=1, help="how many users to ask about, drawn by hash; ignored with --user")
    ] = 20,
    user: Annotated[list[str], typer.Option(help="id of a user to ask about; may be repeated")] = [],  # noqa: B006
    dry_run: DryRun = False,
    log_json: LogJson = False,
    force: Force = False,
) -> None:
    """Ask the LLM about users in words, with A-LLMRec's soft tokens and without."""
    from jobs.config import load_config
    from jobs.explain import explain as run_explain

    run_explain(load_config(config, overrides), Console(log_json), task, users, user, dry_run, force)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides,
    date: RunDate = None,
    dry_run: DryRun = False,
    log_json: LogJson = False,
    force: Force = False,
) -> None:
    """Run all steps in order; skip those whose inputs and config have not changed."""
    from jobs.config import load_config
    from jobs.pipeline import run as run_all

    settings = load_config(config, overrides)
    day = run_date(date, settings.nightly.timezone)
    run_all(settings, Console(log_json), day, dry_run, force)


@app.command()
def submit(
    config: ConfigFile,
    address: Annotated[str, typer.Option(help="address of the Ray head's dashboard, http://HOST:8265")],
    overrides: Overrides,
    date: RunDate = None,
    log_json: LogJson = False,
) -> None:
    """Submit `daily` to a Ray cluster and wait for it; fail unless the date is published. For schedulers."""
    from jobs.config import load_config
    from jobs.submit import submit as submit_daily

    settings = load_config(config, overrides)
    day = run_date(date, settings.nightly.timezone)
    sets = [part for override in overrides for part in ("--set", override)]
    arguments = ["--config", str(config), "--date", str(day), *sets, "--log-json"]
    raise typer.Exit(submit_daily(settings, Console(log_json), address, day, arguments))


def _call(
    module: str, function: str, config: Path, overrides: list[str], log_json: bool, *arguments: Any, **dates: str | None
) -> None:
    """`function(config, console, *arguments, **dates)` of a module of `jobs/`, which is imported now."""
    from jobs.config import load_config

    parsed = {name: run_date(text) if text else None for name, text in dates.items()}
    called = getattr(importlib.import_module(module), function)
    called(load_config(config, overrides), Console(log_json), *arguments, **parsed)


@bundle.command("show")
def bundle_show(
    config: ConfigFile,
    overrides: Overrides,
    version: BundleVersion = None,
    log_json: LogJson = False,
) -> None:
    """Show what a bundle was made from."""
    _call("jobs.bundle", "show", config, overrides, log_json, version)


@bundle.command("verify")
def bundle_verify(
    config: ConfigFile,
    overrides: Overrides,
    version: BundleVersion = None,
    log_json: LogJson = False,
) -> None:
    """Load a bundle, compare every file with its hash, and score with it."""
    _call("jobs.bundle", "verify", config, overrides, log_json, version)


@bundle.command("promote")
def bundle_promote(
    config: ConfigFile,
    version: Annotated[str, typer.Argument(help="version, as `allmrec bundle list` prints it")],
    overrides: Overrides,
    log_json: LogJson = False,
) -> None:
    """Put a bundle, perhaps an older one, into use: evaluations and the next date's run take it."""
    _call("jobs.bundle", "promote_version", config, overrides, log_json, version)


@bundle.command("list")
def bundle_list(config: ConfigFile, overrides: Overrides, log_json: LogJson = False) -> None:
    """List the bundles, and which one is in use."""
    _call("jobs.bundle", "list_bundles", config, overrides, log_json)


@models.command("import")
def models_import(
    source: Annotated[str, typer.Argument(help="hub name, folder or s3:// prefix, or a GGUF file in one of them")],
    to: Annotated[str, typer.Option(help="folder or s3:// prefix to write; llm.name then names it")],
    revision: Annotated[str | None, typer.Option(help="revision of a hub name")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option(help="convert the weights to this type")
    ] = None,
    log_json: LogJson = False,
) -> None:
    """Convert an LLM (PyTorch files, GGUF) to safetensors, and check the result against the source."""
    from jobs.models import import_model

    import_model(Console(log_json), source, to, revision, dtype)


@recommendations.command("show")
def recommendations_show(
    config: ConfigFile,
    user: Annotated[str, typer.Option(help="id of the user")],
    overrides: Overrides,
    date: PublishedDate = None,
    log_json: LogJson = False,
) -> None:
    """Show a user's recommendations."""
    _call("jobs.recommendations", "show", config, overrides, log_json, user, run_date=date)


@recommendations.command("list")
def recommendations_list(
    config: ConfigFile,
    overrides: Overrides,
    log_json: LogJson = False,
) -> None:
    """List the dates that have a run, and which one is current."""
    _call("jobs.recommendations", "list_runs", config, overrides, log_json)


@recommendations.command("verify")
def recommendations_verify(
    config: ConfigFile,
    overrides: Overrides,
    date: PublishedDate = None,
    log_json: LogJson = False,
) -> None:
    """Compare every file of a run with its hash."""
    _call("jobs.recommendations", "verify", config, overrides, log_json, run_date=date)


@recommendations.command("metrics")
def recommendations_metrics(
    config: ConfigFile,
    overrides: Overrides,
    port: Annotated[int | None, typer.Option(help="serve them on this port; default: print them once")] = None,
    log_json: LogJson = False,
) -> None:
    """Print or serve the state of the nightly runs as Prometheus metrics."""
    _call("jobs.recommendations", "metrics", config, overrides, log_json, port)


@recommendations.command("rollback")
def recommendations_rollback(
    config: ConfigFile,
    date: ExistingDate,
    overrides: Overrides,
    log_json: LogJson = False,
) -> None:
    """Make the run of an earlier date the current one again."""
    _call("jobs.recommendations", "rollback", config, overrides, log_json, run_date=date)


@recommendations.command("discard")
def recommendations_discard(
    config: ConfigFile,
    date: ExistingDate,
    overrides: Overrides,
    log_json: LogJson = False,
) -> None:
    """Delete the unfinished work of a date that was never published."""
    _call("jobs.recommendations", "discard", config, overrides, log_json, run_date=date)


@recommendations.command("suppress")
def recommendations_suppress(
    config: ConfigFile,
    overrides: Overrides,
    users: Annotated[
        str | None, typer.Option(help="list of user ids: a text file with one per line, Parquet, CSV or JSON lines")
    ] = None,
    items: Annotated[str | None, typer.Option(help="list of item ids, likewise")] = None,
    least: Annotated[
        float | None,
        typer.Option("--min-known-fraction", min=0, max=1, help="smallest share of a list that must be known; 0: any"),
    ] = None,
    date: AnyDate = None,
    log_json: LogJson = False,
) -> None:
    """Remove users and items from published runs: those listed, or the config's excluded and suppressed ones."""
    _call("jobs.recommendations", "suppress", config, overrides, log_json, users, items, least, run_date=date)


if __name__ == "__main__":
    main()
