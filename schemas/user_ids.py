"""Optional input of `nightly`: users who are asked for, or who must not appear."""

import pyarrow as pa

SCHEMA = pa.schema([pa.field("user_id", pa.string(), nullable=False)])
