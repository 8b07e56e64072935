"""SBERT embeddings of the items' texts, Q_i."""

import pyarrow as pa


def schema(dim: int) -> pa.Schema:
    """The schema for an encoder of `dim` dimensions."""
    return pa.schema(
        [
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("text_hash", pa.string(), nullable=False),  # which text it is the embedding of
            pa.field("encoder", pa.string(), nullable=False),  # name and revision of the encoder
            pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        ]
    )
