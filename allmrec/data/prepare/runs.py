"""Runs, the files of the shuffle: rows in parts by range of shards, written by one task and read by many.

    offsets of the parts, and the end of the last: uint64 (parts + 1,) | part 0 | part 1 | ...

A part is Arrow IPC messages without their schema: record batches of one row, which holds the part's events, its
rejected rows and, in part 0, the counts of what was filtered out of the whole run. Two ranged reads fetch a part. The
same rows give the same bytes, so a task that runs again does not disturb readers. `shuffle` decides which task reads
what.
"""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from allmrec.core.storage import Storage
from allmrec.data.prepare.clean import EVENTS, REJECTIONS, Cleaned

CHUNK_BYTES = 1 << 27  # of rows encoded at once; a piece of a million rows has about 40 MB
_OFFSET = np.dtype("<u8")
_TABLES = {"events": EVENTS, "rejections": REJECTIONS}
# The number of the record batch is that of the part.
_PARTS = pa.schema(
    [
        *(pa.field(name, pa.list_(pa.struct(list(schema))), nullable=False) for name, schema in _TABLES.items()),
        pa.field("filtered_out", pa.map_(pa.string(), pa.int64()), nullable=False),
    ]
)


def in_chunks(rows: Iterable[Cleaned]) -> Iterator[Cleaned]:
    """The rows in the same order, in one chunk or more, none much larger than CHUNK_BYTES unless one of `rows` is."""
    held, size = list[Cleaned](), 0
    for some in rows:
        if size >= CHUNK_BYTES:
            yield Cleaned.concat(held)
            held, size = [], 0
        held.append(some)
        size += some.events.nbytes + some.rejections.nbytes
    yield Cleaned.concat(held)


def write_run(storage: Storage, key: str, chunks: Iterable[Cleaned], bounds: Sequence[int]) -> None:
    """Write rows as one object.

    Args:
        chunks: from `in_chunks`.
        bounds: int (parts + 1,): the first shard of each part, and the one after the last part.
    """
    parts: list[list[bytes]] = [[] for _ in bounds[1:]]
    for chunk in chunks:
        for messages, message in zip(parts, _messages(chunk, bounds), strict=True):
            messages.append(message)
    sizes = [sum(map(len, messages)) for messages in parts]
    offsets = np.cumsum([_OFFSET.itemsize * len(bounds), *sizes]).astype(_OFFSET)
    storage.write(key, b"".join([offsets.tobytes(), *(message for messages in parts for message in messages)]))


def read_part(storage: Storage, key: str, part: int) -> bytes:
    at = _OFFSET.itemsize * part
    start, stop = np.frombuffer(storage.read(key, at, at + 2 * _OFFSET.itemsize), _OFFSET).tolist()
    return storage.read(key, start, stop)


def decode_part(part: bytes) -> Iterator[Cleaned]:
    """A part's rows, chunk by chunk as they were written."""
    messages = pa.BufferReader(part)
    while messages.tell() < len(part):
        batch = pa.ipc.read_record_batch(pa.ipc.read_message(messages), _PARTS)
        tables = {name: pa.Table.from_struct_array(batch.column(name).flatten()) for name in _TABLES}
        yield Cleaned(**tables, filtered_out=Counter(dict(batch.column("filtered_out")[0].as_py())))


def _messages(chunk: Cleaned, bounds: Sequence[int]) -> list[bytes]:
    """A record batch for each part."""
    lists = [_by_part(getattr(chunk, name), schema, bounds) for name, schema in _TABLES.items()]
    counts = chunk.filtered_out
    names, values = pa.array(list(counts), pa.string()), pa.array(list(counts.values()), pa.int64())
    ends = pa.array([0, *[len(counts)] * (len(bounds) - 1)], pa.int32())
    batch = pa.record_batch([*lists, pa.MapArray.from_arrays(ends, names, values)], schema=_PARTS)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, _PARTS, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(batch.slice(0, 0))  # and the schema before it, which readers have
        marks = [sink.tell()]
        for part in range(len(batch)):
            writer.write_batch(batch.slice(part, 1))
            marks.append(sink.tell())
    written = sink.getbuffer()
    return [bytes(written[start:stop]) for start, stop in pairwise(marks)]


def _by_part(table: pa.Table, schema: pa.Schema, bounds: Sequence[int]) -> pa.ListArray:
    """Rows as structs, one list a part."""
    shard = table.column("shard").to_numpy().astype(np.min_scalar_type(bounds[-1]))  # few bits: a radix sort
    order = shard.argsort(kind="stable")
    columns = [column.combine_chunks().take(pa.array(order)) for column in table.columns]
    offsets = pa.array(np.searchsorted(shard[order], bounds), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=list(schema)))
