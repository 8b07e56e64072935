"""Optional input of `train-cf`: the item embeddings E_i of another system, for `teacher.model: external`."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),  # the shop's id; each once
        # E_i, of D dimensions as every other; s(x^u, E_i) is the dot product. Also a list of fixed size, or of doubles.
        pa.field("embedding", pa.list_(pa.float32()), nullable=False),
    ]
)
