"""Ask the LLM about users in words, with A-LLMRec's soft tokens and without; write `explanations`.

    allmrec explain --config jobs/configs/demo.yaml --task favourite-genre --users 20
    python -m jobs.explain --config jobs/configs/demo.yaml --task favourite-genre --user U000012

Ray Data assigns the shards that hold the requested users to workers with the bundle and the LLM; tasks draw the users
and look for them.
"""

from functools import partial

import polars as pl
import pyarrow as pa

from allmrec.bundle.description import check_items, check_llm, read_description
from allmrec.bundle.versions import latest_bundle
from allmrec.core.artifacts import read_manifest, writing
from allmrec.data.sequences import num_shards
from allmrec.explain.shards import ExplainShards, sample_users, shards_of
from jobs.config import Config
from jobs.runtime.cluster import start_ray
from jobs.runtime.command import main
from jobs.runtime.console import Console
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import iter_results, map_actors, on_worker
from jobs.runtime.step import Context, Stats, Step, execute
from schemas.explanations import SCHEMA

TASKS = ("favourite-genre",)
SHOWN = 5  # users whose answers the console prints


def explain(
    config: Config,
    console: Console,
    task: str,
    users: int,
    user_ids: list[str],
    dry_run: bool = False,
    force: bool = False,
) -> None:
    """Ask about the given users, or about a sample of `users`.

    Raises:
        ValueError: no such task, a user or a category is missing, or the LLM is not the bundle's.
    """
    if task not in TASKS:
        raise ValueError(f"--task {task!r} is not known; known: {', '.join(TASKS)}")
    user_ids = list(dict.fromkeys(user_ids))
    step = Step(
        "explain",
        sections=("explain", "llm"),
        inputs=("bundle", "sequences", "items"),
        outputs=("explanations",),
        run=partial(run, users=users, user_ids=user_ids),
        plan=partial(plan, users=users, user_ids=user_ids),
        needs=Needs("pool", models=lambda config: ("llm",), blocks=lambda config: 1),
        external_inputs=lambda context: {"task": task, "users": user_ids or users},
    )
    execute(step, config, console, dry_run, force)


def run(context: Context, users: int, user_ids: list[str]) -> Stats:
    # Read.
    config, sequences = context.config, context.workspace.sequences
    version = latest_bundle(context.storage)
    description = read_description(context.storage, version)
    check_llm(description, config.llm)
    start_ray(config)
    on_worker(check_items, description, context.workspace.items)
    count = num_shards(sequences)
    requested = user_ids or on_worker(sample_users, sequences, count, users, config.seed)
    shards = on_worker(shards_of, sequences, count, requested)

    # Ask.
    arguments = (context.storage, version, config.llm, config.explain, requested)
    answers = []
    with context.console.progress("explain", len(shards)) as bar:
        for table in iter_results(map_actors(shards, ExplainShards, arguments, config.workers)):
            answers.append(table)
            bar.advance()
    rows = pa.concat_tables(answers).sort_by([("user_id", "ascending"), ("system", "ascending")])

    # Write.
    target, systems = context.workspace.explanations, summary(rows)
    with writing(target, "explanations", context.fingerprint, context.resolved("explain", "llm")) as out:
        out.table(0, SCHEMA, rows)
        out.stats |= {"users": len(requested), "bundle": version, "systems": systems.to_dicts()}
    show(context.console, rows, systems)
    return {"users": len(requested), "explanations": target.uri}


def summary(rows: pa.Table) -> pl.DataFrame:
    """By system, over the users who have a favourite: how often it is named, chosen, and how probable it is."""
    return (
        pl.DataFrame(rows)
        .filter(pl.col("favourites").list.len() > 0)
        .group_by("system", maintain_order=True)
        .agg(
            pl.len().alias("users"),
            pl.col("names_favourite").mean().alias("writes a favourite"),
            pl.col("chose_favourite").mean().alias("chooses a favourite"),
            pl.col("probability").mean().alias("their probability"),
            pl.col("chance").mean(),
        )
    )


def show(console: Console, rows: pa.Table, systems: pl.DataFrame) -> None:
    """A few users' histories and answers, and how often each system was right."""
    by_user = pl.DataFrame(rows).group_by("user_id", maintain_order=True).agg(pl.all().exclude("user_id")).head(SHOWN)
    for user in by_user.iter_rows(named=True):
        told = [["history", "; ".join(user["history"][0])], ["favourite", ", ".join(user["favourites"][0])]]
        for system, text, choice in zip(user["system"], user["text"], user["choice"], strict=True):
            told += [[f"{system} writes", text], [f"{system} chooses", choice]]
        console.table(f"user {user['user_id']}", ["", "favourite-genre"], told)
    console.table("favourite-genre", systems.columns, [list(row) for row in systems.iter_rows()])


def plan(context: Context, users: int, user_ids: list[str]) -> Stats:
    requested = len(user_ids) or min(users, read_manifest(context.workspace.sequences).rows)
    return {
        "users": requested,
        "prompts": 2 * requested,
        "categories": f"at most {context.config.explain.max_categories}",
    }


if __name__ == "__main__":
    main("explain")
