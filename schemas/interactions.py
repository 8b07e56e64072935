"""Input: the interaction log, one row an event. `data.interactions.columns` maps other names onto these."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),  # who
        pa.field("item_id", pa.string(), nullable=False),  # what
        pa.field("timestamp", pa.timestamp("us", tz="UTC"), nullable=False),  # when
        pa.field("rating", pa.float32()),  # explicit rating, if the log has one
        pa.field("event", pa.string()),  # kind of event (view, cart, purchase), if the log has one
    ]
)
