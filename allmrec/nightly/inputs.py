"""What a nightly run is made of: its identity, its users, what may be recommended, and the run before it."""

import datetime
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from allmrec.bundle.description import check_llm, check_system, read_description
from allmrec.bundle.items import current_items, new_since_training, renumbering
from allmrec.bundle.versions import latest_bundle
from allmrec.cf.approximate import load_faiss
from allmrec.core.artifacts import read_manifest, read_table
from allmrec.core.storage import S3Config, Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue, in_order
from allmrec.data.known import Known
from allmrec.data.sequences import num_shards
from allmrec.data.sources.lists import IdList, read_list
from allmrec.data.trained_items import ids_digest
from allmrec.llm.adapter import check_peft
from allmrec.llm.loading import LLMConfig
from allmrec.nightly.blend import fitted_weight
from allmrec.nightly.config import ItemsConfig, NightlyConfig
from allmrec.nightly.configured_tables import EXTERNAL_CANDIDATES, SUPPRESSED_USERS, USERS, UserTable, configured_tables
from allmrec.nightly.filters import ItemFilter, build_filter
from allmrec.nightly.lists import ListCount, check_lists
from allmrec.nightly.reuse import PreviousRun
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
        full: bool = False,
        limit: int | None = None,
        replacing: Lease | None = None,
    ) -> NightlyJob:
        """Begin or resume the run of a date; what its workers are told.

        Args:
            full: no row of the run before is reused.
            limit: of users, see `EligibleUsers`.
            replacing: see `Run.open`.

        Raises:
            ValueError: too little of a list is known, or the date has another run.
        """
        filter, lists = self.item_filter()
        lists += [count for table in self.tables for count in table.counts(self.config, self.workspace)]
        check_lists(lists)
        identity = self.identity(filter, limit)
        return NightlyJob(
            Run.open(output, run_date, identity, replacing),
            self.workspace.storage,
            self.config,
            self.llm,
            self.seed,
            self.eligible_users(run_date, limit),
            filter,
            identity["weight"],
            new_since_training(self.workspace.storage, self.bundle),
            external_candidates=self._partitioned(EXTERNAL_CANDIDATES),
            previous=PreviousRun.before(output, run_date, num_shards(self.workspace.sequences)),
            reuse=not full,
            lists=tuple(lists),
        )

    def run(self, output: Storage, run_date: datetime.date, limit: int | None = None) -> Run:
        """The run that `prepare_job` would begin or resume; nothing is written."""
        return Run.of(output, run_date, self.identity(self.item_filter()[0], limit))

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

    def identity(self, filter: ItemFilter, limit: int | None) -> dict[str, Any]:
        """What the result depends on: two runs of a date that agree on it are the same run."""
        description = self.check()
        tables = (Workspace.sequences, *[table.artifact for table in self.tables])
        fixed = _FIXED_WEIGHTS.get(self.config.ranker)
        return {
            "bundle": description["version"],
            "llm": description["models"]["llm"]["identity"],
            "dtype": self.llm.dtype,
            **{name: read_manifest(self.workspace.at(name)).digest for name in tables},
            # Of the prepared items: what the indices of `sequences` mean. What may be recommended is in the filter.
            "items": ids_digest(in_order(read_table(self.workspace.items, columns=["item_index", "item_id"]))),
            "filter": filter.digest,
            "nightly": self.config.identity(),
            "weight": fitted_weight(self.workspace) if fixed is None else fixed,
            "limit": limit,
            "seed": self.seed,
            "algorithm": ALGORITHM,
        }

    def item_filter(self) -> tuple[ItemFilter, list[ListCount]]:
        """What may be recommended in this run, and how much is known of the lists that say so."""
        items = current_items(self.workspace.storage, self.bundle)
        lists = {key: item_list(self.config, self.stores, key) for key in ("blocked_items", "suppressed_items")}
        filter = build_filter(
            Catalogue.from_table(items),
            items.column("categories"),
            self.config.allowed_categories,
            *(found.spellings.to_pylist() if found else [] for found in lists.values()),
        )
        known = Known(self.workspace)
        return filter, [
            ListCount(found.name, "items", len(found), found.known(known.items(found.spellings)), found.least)
            for found in lists.values()
            if found
        ]

    def eligible_users(self, run_date: datetime.date, limit: int | None = None) -> EligibleUsers:
        requested, suppressed = self._partitioned(USERS), self._partitioned(SUPPRESSED_USERS)
        index_I = renumbering(self.workspace.storage, self.bundle)
        return EligibleUsers(
            self.workspace.sequences, run_date, requested, suppressed, limit, self.config.timezone, index_I
        )

    @cached_property
    def bundle(self) -> str:
        """The version in use."""
        return latest_bundle(self.workspace.storage)

    @property
    def tables(self) -> list[UserTable]:
        return configured_tables(self.config)

    def _partitioned(self, table: UserTable) -> Storage | None:
        return self.workspace.at(table.artifact) if table.is_configured(self.config) else None


def item_list(config: NightlyConfig, stores: S3Config, key: str) -> IdList | None:
    """A list of `nightly`: the ids of the config and those of its table; None where there is none."""
    listed: ItemsConfig = getattr(config, key)
    if not listed.ids and not listed.paths:
        return None
    return read_list(key, listed, "item_id", stores, f"nightly.{key}", listed.ids)
