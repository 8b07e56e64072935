"""Optional input of `nightly`: candidates from another system, instead of the teacher's."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_ids", pa.list_(pa.string()), nullable=False),  # in the other system's order, best first
    ]
)
