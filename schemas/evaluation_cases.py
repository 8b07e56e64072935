"""Evaluation cases, written once; every system is scored on the same ones. Sharded like `sequences`."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("target", pa.int32(), nullable=False),  # item_index of the held-out item
        pa.field("history_length", pa.int32(), nullable=False),  # items at the sequence's start that are the history
        # The target first, then the negatives; 0 is no item: the items that the user has not seen ran out.
        pa.field("candidates", pa.list_(pa.int32()), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # valid or test
        pa.field(
            "protocol", pa.string(), nullable=False
        ),  # random or matched: how negatives were drawn; some targets have no matched ones
        pa.field(
            "warm", pa.bool_(), nullable=False
        ),  # the target is among the top 35 % of items by popularity, ties whole
        pa.field("cold", pa.bool_(), nullable=False),  # the target is among the bottom 35 %
    ]
)
