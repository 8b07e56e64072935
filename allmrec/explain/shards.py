"""The explanations of some users, shard by shard: a plain callable for batches of shard numbers."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from allmrec.bundle.loading import load_bundle
from allmrec.core.artifacts import read_table
from allmrec.core.hashing import Draw, draws, hash_strings, key64, shard_of
from allmrec.core.shard_tasks import Task
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import read_item_table
from allmrec.data.sequences import Sequences
from allmrec.explain.answers import ExplainConfig, FavouriteGenre
from allmrec.explain.categories import Categories
from allmrec.llm.loading import LLMConfig
from allmrec.model import ALLMRec


class ExplainShards(Task):
    """Shard numbers → rows of `explanations` for those of the requested users who are in the shard.

    Loads the bundle and the LLM once.
    """

    def __init__(self, storage: Storage, version: str, llm: LLMConfig, config: ExplainConfig, user_ids: list[str]):
        self.workspace, self.config, self.user_ids = Workspace(storage), config, pa.array(user_ids, pa.string())
        self.model = ALLMRec(load_bundle(storage, version), llm)

    @cached_property
    def task(self) -> FavouriteGenre:
        """Made by the first call and not with the worker: Ray hands on an error of a call as it was raised."""
        categories = Categories.from_table(read_item_table(self.workspace.items), self.config.max_categories)
        return FavouriteGenre(self.model, categories, self.config)

    def tables(self, shard: int) -> Iterator[pa.Table]:
        users = Sequences.read(self.workspace.sequences, [shard])
        rows = pc.index_in(self.user_ids, value_set=users.user_ids).drop_null()
        yield self.task.ask(users.take(rows.to_numpy()))


def sample_users(sequences: Storage, num_shards: int, count: int, seed: int) -> list[str]:
    """The users to explain: `count` ids, drawn by hash. Reads no more shards than they fill."""
    chosen: list[str] = []
    for shard in range(num_shards):
        user_ids = _user_ids(sequences, [shard])
        order = draws(hash_strings(user_ids), key64(seed, Draw.EXPLAIN_USERS), 1)[:, 0].argsort(kind="stable")
        chosen += user_ids.take(pa.array(order[: count - len(chosen)])).to_pylist()
        if len(chosen) == count:
            break
    return chosen


def shards_of(sequences: Storage, num_shards: int, user_ids: list[str]) -> list[int]:
    """The shards that hold these users. Raises ValueError naming those who are in none."""
    requested = pa.array(user_ids, pa.string())
    shards = np.unique(shard_of(requested, num_shards)).tolist()
    missing = requested.filter(pc.invert(pc.is_in(requested, value_set=_user_ids(sequences, shards))))
    if len(missing):
        named = ", ".join(map(repr, missing[:5].to_pylist()))
        raise ValueError(f"no history of {named} in {sequences.uri}; check these ids")
    return shards


def _user_ids(sequences: Storage, shards: list[int]) -> pa.ChunkedArray:
    return read_table(sequences, shards, ["user_id"]).column("user_id")
