"""Quarantine: every input row that `prepare` could not use, and why."""

import pyarrow as pa

# The closed list of reasons.
MALFORMED = "malformed"  # cannot be parsed, or is text of another encoding
NULL_ID = "null_id"  # user_id or item_id is null or empty
BAD_TIMESTAMP = "bad_timestamp"  # missing or unparsable
TIMESTAMP_OUT_OF_RANGE = "timestamp_out_of_range"  # before data.earliest or after data.latest
UNKNOWN_ITEM = "unknown_item"  # not in the catalogue
DUPLICATE_EVENT = "duplicate_event"  # same user, item and timestamp as a row that was kept
BAD_AVAILABLE = "bad_available"  # a catalogue row whose `available` is neither yes nor no
DUPLICATE_ITEM = "duplicate_item"  # a catalogue row whose item_id another row has, which was kept
REASONS = (
    MALFORMED,
    NULL_ID,
    BAD_TIMESTAMP,
    TIMESTAMP_OUT_OF_RANGE,
    UNKNOWN_ITEM,
    DUPLICATE_EVENT,
    BAD_AVAILABLE,
    DUPLICATE_ITEM,
)

SCHEMA = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # the input table: interactions or items
        pa.field("reason", pa.string(), nullable=False),  # one of REASONS
        pa.field("row", pa.string(), nullable=False),  # the row as JSON, or its text where it is malformed
        pa.field("file", pa.string()),  # where it is; null for duplicate events, found when files are long closed
        pa.field("from_byte", pa.int64()),  # text: lines are counted from the first that begins at or after this byte
        pa.field("number", pa.int64()),  # of the line, or of the row of a Parquet file, from 1
    ]
)
