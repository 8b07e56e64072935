"""What LLMs said of users in words, beside what the users' histories say: a row a user and system."""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("system", pa.string(), nullable=False),  # llm-only or a-llmrec
        pa.field("history", pa.list_(pa.string()), nullable=False),  # titles that the prompt may show, oldest first
        pa.field("favourites", pa.list_(pa.string()), nullable=False),  # the history's most frequent categories; ties
        pa.field("text", pa.string(), nullable=False),  # what the LLM wrote, freely
        pa.field("names_favourite", pa.bool_(), nullable=False),  # whether the text names one of the favourites
        pa.field("choice", pa.string(), nullable=False),  # the most probable of the catalogue's categories
        pa.field("chose_favourite", pa.bool_(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),  # of the favourites together, among all categories
        pa.field("chance", pa.float32(), nullable=False),  # of a blind choice among all categories to be a favourite
    ]
)
