"""The tables by user that `nightly` may be given, each an artifact of the workspace with the shards of `sequences`.

Knows which key of the config names a table and what is known of it; `allmrec.nightly.user_tables` partitions its rows.
"""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from allmrec.core.artifacts import read_manifest
from allmrec.core.storage import S3Config
from allmrec.core.workspace import Workspace
from allmrec.data.config import ListConfig
from allmrec.data.sources.lists import open_list
from allmrec.data.sources.source import Source, find_files, open_source
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.lists import ListCount
from allmrec.nightly.user_tables import CANDIDATES, Rows, UserRows, rows_of
from schemas import candidates, user_ids


@dataclass(frozen=True)
class UserTable:
    """A table that `nightly.<key>` names."""

    key: str
    artifact: str
    schema: pa.Schema

    def is_configured(self, nightly: NightlyConfig) -> bool:
        return getattr(nightly, self.key) is not None

    def config(self, nightly: NightlyConfig) -> ListConfig:
        config: ListConfig | None = getattr(nightly, self.key)
        assert config is not None, "only a table that is configured is read"
        return config

    def open(self, nightly: NightlyConfig, stores: S3Config) -> tuple[Source, Rows]:
        """The table, checked, and how it is written. Raises ValueError for what cannot be read."""
        config, section = self.config(nightly), f"nightly.{self.key}"
        if self.schema is user_ids.SCHEMA:
            return open_list(self.key, config, "user_id", stores, section), UserRows()
        source = open_source(self.key, config, stores, CANDIDATES, section)
        return source, rows_of(source)

    def counts(self, nightly: NightlyConfig, workspace: Workspace) -> list[ListCount]:
        """How many ids it lists and how many of them are known, once it is partitioned."""
        stats = read_manifest(workspace.at(self.artifact)).stats
        name, least = f"nightly.{self.key}", self.config(nightly).min_known_fraction
        found = [ListCount(name, "users", stats["listed"], stats["known"], least)]
        if self.schema is candidates.SCHEMA:
            found.append(ListCount(name, "items", stats["items_listed"], stats["items_known"], least))
        return found

    def identity(self, nightly: NightlyConfig, stores: S3Config) -> dict[str, Any]:
        """Its files, and how they are read."""
        config = self.config(nightly)
        files = [vars(file) for file in find_files(self.key, config, stores)]
        return {"files": files, **config.model_dump(mode="json", exclude={"paths", "min_known_fraction"})}


EXTERNAL_CANDIDATES = UserTable("candidates", Workspace.external_candidates, candidates.SCHEMA)
USERS = UserTable("users", Workspace.nightly_users, user_ids.SCHEMA)
SUPPRESSED_USERS = UserTable("suppressed_users", Workspace.suppressed_users, user_ids.SCHEMA)


def configured_tables(nightly: NightlyConfig) -> list[UserTable]:
    return [table for table in (EXTERNAL_CANDIDATES, USERS, SUPPRESSED_USERS) if table.is_configured(nightly)]
