"""The tables of `prepare` made three ways from a generated log, each in a process of its own.

    python -m benchmarks.prepare_engines duckdb FOLDER_OF_THE_LOG OUTPUT_FOLDER --threads 2

`ours` runs the verb as a user does. DuckDB and Polars make sequences, items with their popularity, and rejected rows
with their reasons, from the same files, as Parquet compressed alike; what they have not to do: clean titles, hash
files, partition users into shards, or work out in which order events of one time come, which they read from the log's
column `tie`. Numbers land in `numbers.json` of the output folder.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

EARLIEST, LATEST = 631_152_000, 4_102_444_800  # the defaults of data.earliest and data.latest, as unix times
NOT_COMPARED = "draw evaluation cases"  # the phase of ours that the engines have not
ROWS_PER_SHARD = 500_000


def ours(log: Path, output: Path, threads: int) -> dict[str, Any]:
    """Seconds of the whole verb, Ray's start included, and of its phases."""
    from contextlib import contextmanager

    import pyarrow.parquet as pq
    import ray

    from jobs import prepare
    from jobs.config import Config
    from jobs.runtime.console import Console
    from jobs.runtime.step import execute

    phases: dict[str, float] = {}

    class Timed(Console):
        @contextmanager
        def progress(self, title, total):
            started = time.perf_counter()
            with super().progress(title, total) as bar:
                yield bar
            phases[title] = time.perf_counter() - started

    rows = sum(pq.read_metadata(path).num_rows for path in (log / "log").iterdir())
    config = Config(
        name="run",
        root=str(output),
        data={
            "interactions": {"paths": [str(log / "log")]},
            "items": {"paths": [str(log / "items.parquet")]},
            "num_shards": max(rows // ROWS_PER_SHARD, 8),
        },
        evaluation={"max_users": 1000},
        workers={"num_workers": threads},
    )
    started = time.perf_counter()
    execute(prepare.STEP, config, Timed())
    seconds = time.perf_counter() - started
    ray.shutdown()
    return {"seconds": seconds - phases[NOT_COMPARED], **{f"s to {phase}": phases[phase] for phase in phases}}


def duckdb(log: Path, output: Path, threads: int) -> dict[str, Any]:
    import duckdb

    started = time.perf_counter()
    with duckdb.connect() as engine:
        engine.execute(
            f"SET threads = {threads}; SET preserve_insertion_order = false; SET enable_progress_bar = false"
        )
        engine.execute(f"SET temp_directory = '{output / 'spill'}'")
        engine.execute(
            f"""
            CREATE TEMP TABLE catalogue AS
            SELECT item_id, title, row_number() OVER (ORDER BY item_id)::INTEGER AS item_index
            FROM '{log}/items.parquet';

            CREATE TEMP VIEW log AS
            SELECT log.*, item_index, CASE
                WHEN coalesce(user_id, '') = '' OR coalesce(log.item_id, '') = '' THEN 'null_id'
                WHEN timestamp IS NULL THEN 'bad_timestamp'
                WHEN timestamp NOT BETWEEN {EARLIEST} AND {LATEST} THEN 'timestamp_out_of_range'
                WHEN item_index IS NULL THEN 'unknown_item' END AS reason
            FROM '{log}/log/*.parquet' AS log LEFT JOIN catalogue USING (item_id);

            CREATE TEMP TABLE events AS
            SELECT user_id, item_index, timestamp, tie, count(*) AS copies
            FROM log WHERE reason IS NULL GROUP BY ALL;

            COPY (
                SELECT user_id,
                    list_transform(events, lambda event: event.item_index) AS item_index,
                    list_transform(events, lambda event: make_timestamp(event.timestamp * 1000000)) AS timestamp
                FROM (
                    SELECT
                        user_id,
                        list_sort(list({{timestamp: timestamp, tie: tie, item_index: item_index}})) AS events
                    FROM events GROUP BY user_id
                )
            ) TO '{output}/sequences.parquet' (COMPRESSION zstd);

            COPY (
                SELECT 'interactions' AS source, reason,
                    to_json({{user_id: user_id, item_id: item_id, timestamp: timestamp}})::VARCHAR AS row
                FROM log WHERE reason IS NOT NULL
                UNION ALL
                SELECT 'interactions', 'duplicate_event',
                    to_json({{user_id: user_id, item_id: item_id, timestamp: timestamp}})::VARCHAR
                FROM (SELECT *, unnest(range(copies - 1)) FROM events WHERE copies > 1)
                JOIN catalogue USING (item_index)
            ) TO '{output}/rejected.parquet' (COMPRESSION zstd);

            COPY (
                SELECT catalogue.*, coalesce(popularity, 0) AS popularity
                FROM catalogue LEFT JOIN (
                    SELECT item_index, count(*) AS popularity
                    FROM (
                        SELECT unnest(item_index[:if(len(item_index) < 3, len(item_index), len(item_index) - 2)])
                            AS item_index
                        FROM '{output}/sequences.parquet'
                    ) GROUP BY item_index
                ) USING (item_index)
            ) TO '{output}/items.parquet' (COMPRESSION zstd);
            """
        )
    return {"seconds": time.perf_counter() - started}


def polars(log: Path, output: Path, threads: int) -> dict[str, Any]:
    import os

    os.environ["POLARS_MAX_THREADS"] = str(threads)
    import polars as pl

    assert pl.thread_pool_size() == threads
    started = time.perf_counter()
    catalogue = pl.read_parquet(log / "items.parquet").sort("item_id").with_row_index("item_index", offset=1)
    catalogue = catalogue.with_columns(pl.col("item_index").cast(pl.Int32))
    rows = (
        pl.scan_parquet(log / "log")
        .join(catalogue.lazy(), on="item_id", how="left")
        .with_columns(
            reason=pl.when(pl.any_horizontal(pl.col("user_id", "item_id").fill_null("") == ""))
            .then(pl.lit("null_id"))
            .when(pl.col("timestamp").is_null())
            .then(pl.lit("bad_timestamp"))
            .when(~pl.col("timestamp").is_between(EARLIEST, LATEST))
            .then(pl.lit("timestamp_out_of_range"))
            .when(pl.col("item_index").is_null())
            .then(pl.lit("unknown_item"))
        )
    )
    as_json = pl.struct("user_id", "item_id", "timestamp").struct.json_encode().alias("row")
    rows.filter(pl.col("reason").is_not_null()).select("reason", as_json).sink_parquet(output / "bad.parquet")
    key = ["user_id", "item_index", "timestamp"]
    events = rows.filter(pl.col("reason").is_null()).group_by(key).agg(pl.col("tie").first(), copies=pl.len())
    events.sink_parquet(output / "events.parquet", compression="lz4")
    in_order = pl.col("item_index", "timestamp").sort_by("timestamp", "tie")
    histories = pl.scan_parquet(output / "events.parquet").group_by("user_id").agg(in_order)
    micros = (pl.col("timestamp").list.eval(pl.element() * 1_000_000)).cast(pl.List(pl.Datetime("us")))
    histories.with_columns(micros).sink_parquet(output / "sequences.parquet", compression="zstd")

    again = pl.scan_parquet(output / "events.parquet").filter(pl.col("copies") > 1)
    again = again.with_columns(copy=pl.int_ranges(pl.col("copies") - 1)).explode("copy")
    again = again.join(catalogue.lazy(), on="item_index").select(reason=pl.lit("duplicate_event"), row=as_json)
    rejected = pl.concat([pl.scan_parquet(output / "bad.parquet"), again])
    rejected.with_columns(source=pl.lit("interactions")).sink_parquet(output / "rejected.parquet", compression="zstd")

    items = pl.scan_parquet(output / "sequences.parquet").select("item_index")
    length = pl.col("item_index").list.len()
    trained = pl.col("item_index").list.head(pl.when(length < 3).then(length).otherwise(length - 2))
    counts = items.select(trained).explode("item_index").group_by("item_index").agg(popularity=pl.len())
    table = catalogue.lazy().join(counts, on="item_index", how="left").with_columns(pl.col("popularity").fill_null(0))
    table.sink_parquet(output / "items.parquet", compression="zstd")
    return {"seconds": time.perf_counter() - started}


ENGINES = {"ours": ours, "duckdb": duckdb, "polars": polars}


def main(engine: str, log: Path, output: Path, threads: Annotated[int, typer.Option()] = 2) -> None:
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    numbers = ENGINES[engine](log, output, threads)
    (output / "numbers.json").write_text(json.dumps(numbers))


if __name__ == "__main__":
    typer.run(main)
