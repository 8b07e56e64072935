"""What `evaluate` found for each test case: a row a user, system and protocol. Sharded like `evaluation_cases`.

A metric that a protocol has not is null.
"""

import pyarrow as pa

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),  # whose candidates these are; in the swap not whose history
        pa.field("system", pa.string(), nullable=False),  # of evaluation.systems
        pa.field("protocol", pa.string(), nullable=False),  # random, matched, swap, shuffle, full or generation
        pa.field("warm", pa.bool_(), nullable=False),  # as in evaluation_cases
        pa.field("cold", pa.bool_(), nullable=False),
        pa.field("tied", pa.int32(), nullable=False),  # others that the system cannot tell from the target
        pa.field("candidates", pa.int32()),  # shown in the prompt with a soft token each; null without such tokens
        pa.field("by_text", pa.int32()),  # of these, items whose soft token is made of q_i
        pa.field("hit@1", pa.float64(), nullable=False),  # a tied target has its mean over all orders of those tied
        pa.field("hit@5", pa.float64()),
        pa.field("ndcg@10", pa.float64()),
        pa.field("mrr", pa.float64()),
        pa.field("recall", pa.float64()),  # protocol full: Recall@N; the manifest has N
        pa.field("named", pa.float64()),  # protocol generation: whether the answer is a candidate's title
        pa.field("hit@1 substring", pa.float64()),  # protocol generation: whether the target's title is in the answer
        pa.field("cosine", pa.float64()),  # protocol shuffle: of the user's vectors by both orders, if there are any
    ]
)
