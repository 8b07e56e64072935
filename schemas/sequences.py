"""Each user's history: one row a user, in `part-<shard>.parquet` by a hash of user_id."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_index", pa.list_(pa.int32()), nullable=False),  # in time order, oldest first
        pa.field("timestamp", pa.list_(pa.timestamp("us", tz="UTC")), nullable=False),  # of each item
        pa.field("train_length", pa.int32(), nullable=False),  # items at the start that train; 0: a held-out user
    ]
)
# Where `evaluation.split.shuffle_training` is set: what trains, in the order in which it does.
SHUFFLED = SCHEMA.append(pa.field("train_item_index", pa.list_(pa.int32()), nullable=False))
HISTORY = SCHEMA.remove(SCHEMA.get_field_index("train_length"))  # before the log is split
