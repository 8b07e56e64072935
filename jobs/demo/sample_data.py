"""Write a sample store: a catalogue and a log for each of two domains that share users and their tastes.

    allmrec sample-data --output runs/demo/input --users 3000 --items 800 --seed 0

`output` has `movies/` and `games/`, each with `interactions.parquet` and `items.parquet`. The same arguments
write the same bytes.
"""

from typing import Literal

import polars as pl
import pyarrow as pa
import typer
from pydantic import ValidationError

from allmrec.core.artifacts import to_parquet
from allmrec.core.settings import one_line
from allmrec.core.storage import S3Config, open_storage
from allmrec.demo.sample.corruption import broken_lines, corrupt_interactions, corrupt_items
from allmrec.demo.sample.log import interactions_table
from allmrec.demo.sample.shop import DOMAINS, Domain, SampleConfig, Tastes, draw_latent_items, draw_tastes, generator
from allmrec.demo.sample.titles import item_ids, items_table, user_ids
from jobs.runtime.command import errors_in_one_line

Format = Literal["parquet", "jsonl"]


def sample_data(
    output: str = "runs/demo/input",
    users: int = 3000,
    items: int = 800,
    interactions_per_user: float = 12,
    seed: int = 0,
    dirty: float = 0.0,
    format: Format = "parquet",
) -> dict[str, int]:
    """Write the store below `output` (a folder or an S3 prefix).

    Returns:
        file → rows.

    Raises:
        ValueError: sizes that cannot be, in one line.
    """
    try:
        config = SampleConfig(
            users=users, items=items, interactions_per_user=interactions_per_user, seed=seed, dirty_fraction=dirty
        )
    except ValidationError as error:
        raise ValueError(f"sample-data: {one_line(error)}") from None
    return write_sample(output, config, format)


def write_sample(
    uri: str, config: SampleConfig, format: Format = "parquet", s3: S3Config | None = None
) -> dict[str, int]:
    """As `sample_data`, from a config; `s3` says how to reach the store, if it is one."""
    storage, tastes = open_storage(uri, s3), draw_tastes(config)
    rows = {}
    for domain in DOMAINS:
        for name, table in draw_tables(config, domain, tastes).items():
            key = f"{domain}/{name}.{format}"
            storage.write(key, to_parquet(table) if format == "parquet" else _to_json_lines(table, config))
            rows[key] = table.num_rows
    return rows


def draw_tables(config: SampleConfig, domain: Domain, tastes: Tastes) -> dict[str, pa.Table]:
    """A domain's input tables by name, corrupted as the config asks."""
    latent = draw_latent_items(config, domain)
    log = interactions_table(config, domain, tastes, latent, user_ids(config), item_ids(config, domain))
    catalogue = items_table(config, domain, latent).sort_by("item_id")
    if config.dirty_fraction:
        random = generator(config, 7, DOMAINS.index(domain))
        log = corrupt_interactions(log, config.dirty_fraction, random)
        catalogue = corrupt_items(catalogue, config.dirty_fraction, random)
    return {"interactions": log, "items": catalogue}


def _to_json_lines(table: pa.Table, config: SampleConfig) -> bytes:
    """One object a line, times as ISO 8601. Among the lines of a dirty log are some that no parser can read."""
    frame = pl.DataFrame(table)
    times = [
        pl.col(name).dt.strftime("%Y-%m-%dT%H:%M:%SZ") for name, kind in frame.schema.items() if kind.is_temporal()
    ]
    lines = frame.with_columns(times).write_ndjson()
    broken = round(config.dirty_fraction * len(frame) / 10) if times else 0
    return (lines + "".join(f"{line}\n" for line in broken_lines(broken))).encode()


if __name__ == "__main__":
    with errors_in_one_line():
        typer.run(sample_data)
