"""Reading what the nightly run published: whole runs only, verified.

Any Parquet reader can do without this module; it follows `latest.json` or a date's `_SUCCESS` and checks every file
against its sha256.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq

from allmrec.artifacts import sha256
from allmrec.nightly.log import LATEST, find_json, manifest_key
from allmrec.storage import S3Config, Storage, open_storage


def read_recommendations(uri: str, run_date: date | str | None = None, s3: S3Config | None = None) -> pa.Table:
    """The current run's recommendations, or those of a date: the `recommendations` table, one row a user.

    Args:
        uri: where recommendations are published (`nightly.output`).
        s3: how to reach the store; by default as the environment says (AWS_ENDPOINT_URL and so on).

    Raises:
        ValueError: nothing is published there, or a file is missing or damaged; names it.
    """
    storage = open_storage(uri, s3)
    published = find_json(storage, LATEST if run_date is None else manifest_key(run_date))
    if published is None:
        raise ValueError(f"{storage.uri}: nothing is published {f'for {run_date}' if run_date else 'there yet'}")
    with ThreadPoolExecutor(8) as pool:
        return pa.concat_tables(pool.map(lambda file: _read(storage, file["key"], file["sha256"]), published["files"]))


def _read(storage: Storage, key: str, digest: str) -> pa.Table:
    try:
        data = storage.read(key)
    except FileNotFoundError:
        raise ValueError(f"{storage.name(key)} is missing: it was deleted after it was published") from None
    if sha256(data) != digest:
        raise ValueError(f"{storage.name(key)} is damaged: its sha256 is not the manifest's")
    return pq.read_table(io.BytesIO(data))
