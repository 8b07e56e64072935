"""The dense part of a log: users with enough items and items with enough users, until none has too few.

    python -m benchmarks.cut_log --log data/amazon-video-games --to data/video-games-part

Reads and writes `interactions.parquet` and `items.parquet`. Where an LLM reads every prompt on a CPU, a small catalogue
and long histories say more in an hour than a large log does; `data.min_item_interactions` would keep the catalogue.
"""

from pathlib import Path
from typing import Annotated

import polars as pl
import typer


def main(
    log: Annotated[Path, typer.Option(help="folder of the log and its catalogue")],
    to: Annotated[Path, typer.Option(help="folder to write")],
    min_user_interactions: int = 6,
    min_item_interactions: int = 30,
) -> None:
    kept = dense(pl.read_parquet(log / "interactions.parquet"), min_user_interactions, min_item_interactions)
    items = pl.read_parquet(log / "items.parquet").join(kept, on="item_id", how="semi")
    to.mkdir(parents=True, exist_ok=True)
    kept.write_parquet(to / "interactions.parquet")
    items.write_parquet(to / "items.parquet")
    print(f"{to}: {kept['user_id'].n_unique():,} users, {len(items):,} items, {len(kept):,} interactions")


def dense(log: pl.DataFrame, min_user: int, min_item: int) -> pl.DataFrame:
    """Rows of `user_id` and `item_id` of which every user has `min_user`, and every item `min_item`."""
    before = -1
    while before != len(log):
        before = len(log)
        log = log.filter(pl.len().over("user_id") >= min_user)
        log = log.filter(pl.len().over("item_id") >= min_item)
    return log


if __name__ == "__main__":
    typer.run(main)
