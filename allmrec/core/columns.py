"""Arrow columns: rows of a column of any size, and the rows of a matrix as a column.

To take rows of a column pyarrow first joins its chunks. This copies all of them, and fails where their texts exceed
2^31 bytes. `take` takes each row from its own chunk.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

_BLOCK = 1 << 16  # rows in a chunk of what is taken


def take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.ChunkedArray:
    """The values at rows, int64 (R,), in their order; null where a row is -1. Copies these values and nothing else."""
    blocks = [rows[first : first + _BLOCK] for first in range(0, len(rows), _BLOCK)]
    return pa.chunked_array([_take(column, block) for block in blocks], column.type)


def to_lists(values_ND: np.ndarray) -> pa.FixedSizeListArray:
    """float32 (N, D) as N lists of D values."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values_ND.ravel(), pa.float32()), values_ND.shape[1])


def _take(column: pa.ChunkedArray, rows: np.ndarray) -> pa.Array:
    known = np.flatnonzero(rows >= 0)
    order = known[np.argsort(rows[known], kind="stable")]
    found = pa.concat_arrays([pa.nulls(0, column.type), *_by_chunk(column, rows[order])])
    at = np.zeros(len(rows), dtype=np.int64)
    at[order] = np.arange(len(order))
    return found.take(pa.array(at, mask=rows < 0))


def _by_chunk(column: pa.ChunkedArray, rows: np.ndarray) -> Iterator[pa.Array]:
    """The values at ascending rows."""
    first = 0
    for chunk in column.chunks:
        here = slice(*np.searchsorted(rows, (first, first + len(chunk))))
        if here.start < here.stop:
            yield chunk.take(pa.array(rows[here] - first))
        first += len(chunk)
