"""Optional input of `train-cf`: the user representations x^u of another system, for `teacher.model: external`."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),  # as in the log; each once
        # x^u, of the same D dimensions as the items' embeddings; made without the held-out items, see docs/teachers.md.
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),
    ]
)
