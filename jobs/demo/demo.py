"""Everything on a laptop: a sample store, stand-in models, the whole run, and a look at what came out.

allmrec demo
"""

import datetime
import json

import polars as pl

from allmrec.core.artifacts import read_table
from allmrec.core.storage import open_storage
from allmrec.publishing.reader import read_recommendations
from jobs.config import Config
from jobs.demo.sample_data import sample_data
from jobs.evaluate import show
from jobs.pipeline import run
from jobs.runtime.command import main
from jobs.runtime.console import Console


def demo(config: Config, console: Console, date: datetime.date) -> None:
    """Build what is missing, run every verb, show users and figures."""
    store = f"{config.workspace_uri}/input"
    if open_storage(store, config.storage).exists("movies/items.parquet"):
        console.skip("sample-data", "the sample store already exists")
    else:
        with console.phase("sample-data") as phase:
            phase.stats(sample_data(store, seed=config.seed))
    run(config, console, date)
    show_users(config, console)
    show(console, json.loads(config.workspace.storage.read("metrics.json")))
    console.event("recommendations", parquet=f"{config.output_uri}/run_date={date}/part-*.parquet")
    console.event("report", html=f"{config.workspace_uri}/report.html")


def show_users(config: Config, console: Console, count: int = 5) -> None:
    """A few users' newest items beside what is recommended to them."""
    workspace = config.workspace
    recommendations = pl.DataFrame(read_recommendations(config.output_uri, s3=config.storage)).head(count)
    items = pl.DataFrame(read_table(workspace.items)).select("item_index", "item_id", "title")
    users = recommendations.get_column("user_id")
    sequences = pl.DataFrame(read_table(workspace.sequences)).filter(pl.col("user_id").is_in(users.implode()))
    histories = (
        sequences.select("user_id", pl.col("item_index").list.tail(5))
        .explode("item_index")
        .join(items, on="item_index", maintain_order="left")
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("title").alias("history"))
    )
    shown = (
        recommendations.select("user_id", pl.col("items").list.head(5))
        .explode("items")
        .unnest("items")
        .join(items, on="item_id", maintain_order="left")
        .group_by("user_id", maintain_order=True)
        .agg(pl.concat_str("title", pl.format(" ({})", pl.col("score").round(3))).alias("recommended"))
        .join(histories, on="user_id")
    )
    for user_id, recommended, history in shown.iter_rows():
        width = max(len(history), len(recommended))
        rows = [[*pair] for pair in zip(padded(history, width), padded(recommended, width), strict=True)]
        console.table(f"user {user_id}", ["bought last, oldest first", "recommended (probability)"], rows)


def padded(cells: list[str], width: int) -> list[str]:
    return cells + [""] * (width - len(cells))


if __name__ == "__main__":
    main("demo")
