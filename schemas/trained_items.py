"""The items that a model was trained on: what the rows of its tables mean, by item index from 1."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("text_hash", pa.string(), nullable=False),  # sha256 of the text that the encoder read
        pa.field("popularity", pa.int64(), nullable=False),  # training interactions
        pa.field("interactions", pa.int64(), nullable=False),  # in `sequences`, in any part
    ]
)
