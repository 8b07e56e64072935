"""The catalogue: as it comes in (INPUT) and as `prepare` writes it (SCHEMA)."""

import pyarrow as pa

INPUT = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),  # the shop's id
        pa.field("title", pa.string()),  # what prompts call the item; untrusted text
        pa.field("description", pa.string()),  # longer text for the text encoder
        pa.field("categories", pa.list_(pa.string())),  # from general to special
        pa.field("available", pa.bool_()),  # false: never recommended; null counts as true
    ]
)

SCHEMA = pa.schema(
    [
        *INPUT,
        pa.field("item_index", pa.int32(), nullable=False),  # dense 1…n; 0 is padding
        pa.field("popularity", pa.int64(), nullable=False),  # training interactions
        pa.field(
            "interactions", pa.int64(), nullable=False
        ),  # in `sequences`, in any part; 0: never drawn as a negative
        pa.field("text_hash", pa.string(), nullable=False),  # sha256 of what the text encoder reads
    ]
)
