"""Output of `nightly.publish_vectors`: LLM-SRec's vector of each item that may be recommended in the run."""

import pyarrow as pa


def schema(dim: int) -> pa.Schema:
    """The schema for vectors of `dim` dimensions (`baselines.llm_srec.dim`)."""
    return pa.schema(
        [
            pa.field("run_date", pa.date32(), nullable=False),
            pa.field("item_id", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),  # its product with a user's is the score
            pa.field("bundle", pa.string(), nullable=False),  # version of the bundle that has the model
            pa.field("run_id", pa.string(), nullable=False),
        ]
    )
