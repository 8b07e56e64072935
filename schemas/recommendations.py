"""Output: one row a user, as readers find it under recommendations/run_date=…/."""

import pyarrow as pa

ITEM = pa.struct(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("rank", pa.int16(), nullable=False),  # dense from 1
        pa.field("score", pa.float32(), nullable=False),  # comparable within a user only
    ]
)

SCHEMA = pa.schema(
    [
        pa.field("run_date", pa.date32(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("items", pa.list_(ITEM), nullable=False),  # by rank
        pa.field("source", pa.string(), nullable=False),  # llm, teacher or popular
        pa.field("bundle", pa.string(), nullable=False),  # version of the bundle that scored
        pa.field("run_id", pa.string(), nullable=False),
    ]
)
