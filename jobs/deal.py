"""Deal the tables by user that `nightly` is given to the shards of the users, each as an artifact of the run."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from allmrec.artifacts import seal, shard_name, unseal, write_shard
from allmrec.data.config import SourceConfig
from allmrec.data.sequences import num_shards
from allmrec.data.sources import Column, Source, find_files, open_source
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.deal import CANDIDATES, USER_IDS, DealRows, WriteRows
from jobs.datasets import over, tables
from jobs.step import Context, Facts, Step
from jobs.workers import start_ray
from schemas import candidates, user_ids


@dataclass(frozen=True)
class Dealt:
    """A table that `nightly.<key>` names."""

    key: str
    artifact: str
    schema: pa.Schema
    columns: dict[str, Column]

    def config(self, nightly: NightlyConfig) -> SourceConfig:
        config: SourceConfig | None = getattr(nightly, self.key)
        assert config is not None, "dealt only where it is configured"
        return config

    def open(self, context: Context) -> Source:
        config = self.config(context.config.nightly)
        return open_source(self.key, config, context.config.storage, self.columns, f"nightly.{self.key}")

    def run(self, context: Context) -> Facts:
        source, target = self.open(context), context.artifact(self.artifact)
        shards = num_shards(context.artifact("sequences"))
        start_ray(context.config)
        unseal(target)
        dealt = over(len(source.pieces), DealRows(source, self.schema, shards)).repartition(shards, keys=["shard"])
        written = dealt.map_batches(WriteRows(target, self.schema), batch_size=None, batch_format="pyarrow")
        files = {row.pop("name"): row for table in tables(written) for row in table.to_pylist()}
        for shard in range(shards):
            name = shard_name(shard)
            if name not in files:
                files[name] = write_shard(target, self.schema, name, self.schema.empty_table())
        seal(target, self.artifact, context.made_by, files, context.resolved("nightly"))
        return {"users": sum(file["rows"] for file in files.values()), "shards": shards}

    def plan(self, context: Context) -> Facts:
        source = self.open(context)
        return {"users": "unknown until read" if source.rows is None else source.rows, "pieces": len(source.pieces)}

    def input_files(self, context: Context) -> Any:
        return [
            vars(file) for file in find_files(self.key, self.config(context.config.nightly), context.config.storage)
        ]

    @property
    def step(self) -> Step:
        return Step(
            f"deal {self.key.replace('_', ' ')}",
            sections=(),
            inputs=("sequences",),
            outputs=(self.artifact,),
            run=self.run,
            plan=self.plan,
            outside=self.input_files,
        )


GIVEN = Dealt("candidates", "candidates", candidates.SCHEMA, CANDIDATES)
USERS = Dealt("users", "nightly_users", user_ids.SCHEMA, USER_IDS)
SUPPRESSED_USERS = Dealt("suppressed_users", "suppressed_users", user_ids.SCHEMA, USER_IDS)
TABLES = (GIVEN, USERS, SUPPRESSED_USERS)
