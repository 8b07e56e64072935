"""Drafts: Arrow IPC files that tasks of a step leave for later tasks, which read one whole, or one of its batches.

Knows no content; who writes drafts deletes them.
"""

import io
from collections.abc import Iterable

import pyarrow as pa

from allmrec.core.storage import Storage


def write_draft(drafts: Storage, name: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for batch in batches:
            writer.write_batch(batch)
    drafts.write(name, buffer.getvalue())


def read_draft(drafts: Storage, name: str, batch: int | None = None) -> pa.Table:
    """A file of the drafts, or one of its record batches."""
    filesystem, root = drafts.arrow()
    with filesystem.open_input_file(f"{root}/{name}") as file:
        reader = pa.ipc.open_file(file)
        return reader.read_all() if batch is None else pa.Table.from_batches([reader.get_batch(batch)])
