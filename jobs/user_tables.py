"""Partition the tables by user that `nightly` is given by the users' shards, each into an artifact of the workspace."""

from dataclasses import dataclass
from typing import Any

from allmrec.core.artifacts import shard_name, writing
from allmrec.data.sequences import num_shards
from allmrec.nightly.configured_tables import UserTable, configured_tables
from allmrec.nightly.user_tables import COUNTS, PartitionRows, WriteRows
from jobs.config import Config
from jobs.runtime.cluster import start_ray
from jobs.runtime.preflight import Needs
from jobs.runtime.ray_data import iter_results, stream
from jobs.runtime.step import Context, Stats, Step


@dataclass(frozen=True)
class PartitionTable:
    """What the step of a table does."""

    table: UserTable

    def run(self, context: Context) -> Stats:
        config, target = context.config, context.workspace.at(self.table.artifact)
        source, rows = self.table.open(config.nightly, config.storage)
        shards = num_shards(context.workspace.sequences)
        start_ray(config)
        with writing(target, self.table.artifact, context.fingerprint, context.resolved("nightly")) as out:
            partition = stream(len(source.pieces), PartitionRows(source, rows, shards))
            writer = WriteRows(target, rows, self.table.schema, context.workspace)
            written = partition.repartition(shards, keys=["shard"]).map_batches(
                writer, batch_size=None, batch_format="pyarrow"
            )
            counts = dict.fromkeys(COUNTS, 0)
            for table in iter_results(written):
                for row in table.to_pylist():
                    counts = {name: counts[name] + (row.pop(name) or 0) for name in COUNTS}
                    out.add({row.pop("name"): row})
            for shard in range(shards):
                if shard_name(shard) not in out.files:
                    out.table(shard, self.table.schema, self.table.schema.empty_table())
            out.stats |= counts
        return {"users": sum(file["rows"] for file in out.files.values()), "shards": shards}

    def plan(self, context: Context) -> Stats:
        source, _ = self.table.open(context.config.nightly, context.config.storage)
        return {"users": "unknown until read" if source.rows is None else source.rows, "pieces": len(source.pieces)}

    def identity(self, context: Context) -> Any:
        return self.table.identity(context.config.nightly, context.config.storage)

    @property
    def step(self) -> Step:
        return Step(
            f"partition {self.table.key.replace('_', ' ')}",
            sections=(),
            inputs=("sequences", "items"),  # they say what is known
            outputs=(self.table.artifact,),
            run=self.run,
            plan=self.plan,
            external_inputs=self.identity,
            needs=Needs("tasks"),
        )


def steps(config: Config) -> list[Step]:
    """One for each table that the config names."""
    return [PartitionTable(table).step for table in configured_tables(config.nightly)]
