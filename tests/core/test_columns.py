from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core import columns
from allmrec.core.columns import take


@given(
    values=st.lists(st.none() | st.text(max_size=3), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=3),
    data=st.data(),
)
def test_rows_are_taken_as_if_the_column_had_one_chunk(values, cuts, data):
    bounds = [0, *sorted(cuts), len(values)]
    chunks = [values[first:last] for first, last in pairwise(bounds)]
    rows = data.draw(st.lists(st.integers(-1, len(values) - 1), max_size=20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_BLOCK", 4)
        found = take(pa.chunked_array(chunks, pa.string()), np.array(rows, dtype=np.int64))
    assert found.type == pa.string()
    assert found.to_pylist() == [None if row < 0 else values[row] for row in rows]


def test_a_column_may_have_more_than_two_gigabytes_of_text():
    """Of chunks that share their memory."""
    width, count = 1 << 16, 1 << 10
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * width)
    text = pa.StringArray.from_buffers(count, offsets.buffers()[1], pa.py_buffer(b"x" * (count * width)))
    column = pa.chunked_array([text] * 32)
    with pytest.raises(pa.ArrowInvalid, match="offset overflow"):
        column.take(pa.array([0]))
    assert pc.binary_length(take(column, np.array([32 * count - 1, 0, -1]))).to_pylist() == [width, width, None]
