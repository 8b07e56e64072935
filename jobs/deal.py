"""Deal the tables by user that `nightly` is given to the shards of the users, each as an artifact of the run."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from allmrec.artifacts import read_manifest, seal, shard_name, unseal, write_shard
from allmrec.data.config import ListConfig
from allmrec.data.lists import open_list
from allmrec.data.sequences import num_shards
from allmrec.data.sources import Source, find_files, open_source
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.deal import CANDIDATES, COUNTS, DealRows, Rows, UserRows, WriteRows, rows_of
from allmrec.nightly.lists import ListCount
from allmrec.storage import Storage
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

    def config(self, nightly: NightlyConfig) -> ListConfig:
        config: ListConfig | None = getattr(nightly, self.key)
        assert config is not None, "dealt only where it is configured"
        return config

    def open(self, context: Context) -> tuple[Source, Rows]:
        """The table, checked, and how it is written. Raises ValueError for what cannot be read."""
        config, s3, section = self.config(context.config.nightly), context.config.storage, f"nightly.{self.key}"
        if self.schema is user_ids.SCHEMA:
            return open_list(self.key, config, "user_id", s3, section), UserRows()
        source = open_source(self.key, config, s3, CANDIDATES, section)
        return source, rows_of(source)

    def run(self, context: Context) -> Facts:
        (source, rows), target = self.open(context), context.artifact(self.artifact)
        shards = num_shards(context.artifact("sequences"))
        start_ray(context.config)
        unseal(target)
        dealt = over(len(source.pieces), DealRows(source, rows, shards)).repartition(shards, keys=["shard"])
        writer = WriteRows(target, rows, self.schema, context.storage)
        written = dealt.map_batches(writer, batch_size=None, batch_format="pyarrow")
        files, counts = dict[str, Any](), dict.fromkeys(COUNTS, 0)
        for table in tables(written):
            for row in table.to_pylist():
                counts = {name: counts[name] + (row.pop(name) or 0) for name in COUNTS}
                files[row.pop("name")] = row
        for shard in range(shards):
            name = shard_name(shard)
            if name not in files:
                files[name] = write_shard(target, self.schema, name, self.schema.empty_table())
        seal(target, self.artifact, context.made_by, files, context.resolved("nightly"), counts)
        return {"users": sum(file["rows"] for file in files.values()), "shards": shards}

    def counts(self, nightly: NightlyConfig, run: Storage) -> list[ListCount]:
        """How many ids it lists and how many of them are known, once it is dealt."""
        facts, least = read_manifest(run.at(self.artifact)).facts, self.config(nightly).min_known_fraction
        found = [ListCount(f"nightly.{self.key}", "users", facts["listed"], facts["known"], least)]
        if self.schema is candidates.SCHEMA:
            found.append(ListCount(f"nightly.{self.key}", "items", facts["items_listed"], facts["items_known"], least))
        return found

    def plan(self, context: Context) -> Facts:
        source, _ = self.open(context)
        return {"users": "unknown until read" if source.rows is None else source.rows, "pieces": len(source.pieces)}

    def made_of(self, context: Context) -> Any:
        """Its files, and how they are read."""
        config = self.config(context.config.nightly)
        files = [vars(file) for file in find_files(self.key, config, context.config.storage)]
        return {"files": files, **config.model_dump(mode="json", exclude={"paths", "min_known_fraction"})}

    @property
    def step(self) -> Step:
        return Step(
            f"deal {self.key.replace('_', ' ')}",
            sections=(),
            inputs=("sequences", "items"),  # `items` and `sequences` say what is known
            outputs=(self.artifact,),
            run=self.run,
            plan=self.plan,
            outside=self.made_of,
        )


GIVEN = Dealt("candidates", "candidates", candidates.SCHEMA)
USERS = Dealt("users", "nightly_users", user_ids.SCHEMA)
SUPPRESSED_USERS = Dealt("suppressed_users", "suppressed_users", user_ids.SCHEMA)
TABLES = (GIVEN, USERS, SUPPRESSED_USERS)
