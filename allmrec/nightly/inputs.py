"""What a nightly run is made of: its identity, its users, and the run before it.

Leaves what is as long as the catalogue to `run_items`: the driver makes all of this, of what a worker tells of items.
"""

import datetime
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from allmrec.bundle.description import check_llm, check_system, read_description
from allmrec.bundle.versions import latest_bundle
from allmrec.cf.approximate import load_faiss
from allmrec.core.artifacts import read_manifest
from allmrec.core.storage import S3Config, Storage
from allmrec.core.workspace import Workspace
from allmrec.data.sequences import num_shards
from allmrec.llm.adapter import check_peft
from allmrec.llm.loading import LLMConfig
from allmrec.nightly.blend import fitted_weight
from allmrec.nightly.config import NightlyConfig
from allmrec.nightly.configured_tables import EXTERNAL_CANDIDATES, SUPPRESSED_USERS, USERS, UserTable, configured_tables
from allmrec.nightly.lists import check_lists
from allmrec.nightly.reuse import PreviousRun
from allmrec.nightly.run_items import ItemSources, ItemSummary
from allmrec.nightly.score import NightlyJob
from allmrec.nightly.users import EligibleUsers
from allmrec.publishing.lease import Lease
from allmrec.publishing.run import Run

ALGORITHM = 1  # raised when the same inputs give other rows; see docs/upgrading.md
_FIXED_WEIGHTS = {"llm": 1.0, "teacher": 0.0, "tallrec": 1.0, "llm-srec": 1.0}


@dataclass(frozen=True)
class NightlyInputs:
    """The workspace, and the sections of the config that a run depends on."""

    workspace: Workspace
    config: NightlyConfig
    llm: LLMConfig
    seed: int
    stores: S3Config  # of lists and tables outside of the workspace

    def prepare_job(
        self,
        output: Storage,
        run_date: datetime.date,
        items: ItemSummary,
        full: bool = False,
        limit: int | None = None,
        replacing: Lease | None = None,
    ) -> NightlyJob:
        """Begin or resume the run of a date; what its workers are told.

        Args:
            items: of `item_sources`.
            full: no row of the run before is reused.
            limit: of users, see `EligibleUsers`.
            replacing: see `Run.open`.

        Raises:
            ValueError: too little of a list is known, or the date has another run.
        """
        lists = [*items.lists]
        lists += [count for table in self.tables for count in table.counts(self.config, self.workspace)]
        check_lists(lists)
        identity = self.identity(items, limit)
        return NightlyJob(
            Run.open(output, run_date, identity, replacing),
            self.workspace.storage,
            self.config,
            self.stores,
            self.llm,
            self.seed,
            self.eligible_users(run_date, limit),
            identity["weight"],
            external_candidates=self._partitioned(EXTERNAL_CANDIDATES),
            previous=PreviousRun.before(output, run_date, num_shards(self.workspace.sequences)),
            reuse=not full,
            lists=tuple(lists),
        )

    def run(self, output: Storage, run_date: datetime.date, items: ItemSummary, limit: int | None = None) -> Run:
        """The run that `prepare_job` would begin or resume; nothing is written."""
        return Run.of(output, run_date, self.identity(items, limit))

    def check(self) -> dict[str, Any]:
        """The bundle's description. Raises ValueError where bundle and LLM do not fit together."""
        description = read_description(self.workspace.storage, self.bundle)
        check_llm(description, self.llm)
        if self.config.uses_llm_srec:
            check_system(description, "llm-srec")
        if self.config.ranker == "tallrec":
            check_system(description, "tallrec")
            check_peft()
        above = self.config.approximate_above
        if above is not None and read_manifest(self.workspace.items).rows > above:
            load_faiss()  # before any worker starts
        return description

    def identity(self, items: ItemSummary, limit: int | None) -> dict[str, Any]:
        """What the result depends on: two runs of a date that agree on it are the same run."""
        description = self.check()
        tables = (Workspace.sequences, *[table.artifact for table in self.tables])
        fixed = _FIXED_WEIGHTS.get(self.config.ranker)
        return {
            "bundle": description["version"],
            "llm": description["models"]["llm"]["identity"],
            "dtype": self.llm.dtype,
            **{name: read_manifest(self.workspace.at(name)).digest for name in tables},
            "items": items.indices,
            "filter": items.filter,
            "nightly": self.config.identity(),
            "weight": fitted_weight(self.workspace) if fixed is None else fixed,
            "limit": limit,
            "seed": self.seed,
            "algorithm": ALGORITHM,
        }

    @property
    def item_sources(self) -> ItemSources:
        """For a worker, which tells the `summary`."""
        return ItemSources(self.workspace.storage, self.bundle, self.config, self.stores)

    def eligible_users(self, run_date: datetime.date, limit: int | None = None) -> EligibleUsers:
        requested, suppressed = self._partitioned(USERS), self._partitioned(SUPPRESSED_USERS)
        return EligibleUsers(self.workspace.sequences, run_date, requested, suppressed, limit, self.config.timezone)

    @cached_property
    def bundle(self) -> str:
        """The version in use."""
        return latest_bundle(self.workspace.storage)

    @property
    def tables(self) -> list[UserTable]:
        return configured_tables(self.config)

    def _partitioned(self, table: UserTable) -> Storage | None:
        return self.workspace.at(table.artifact) if table.is_configured(self.config) else None
