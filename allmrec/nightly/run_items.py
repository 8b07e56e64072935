"""What a run knows of each item, by index: whether it may be recommended, whether it is new, and what number it has.

All of it is as long as the catalogue: workers make it from the store, each process once; the driver has `ItemSummary`.
What may be recommended is part of the run's identity and is kept with its work: lists may change while it works.

Dimensions: I = n + 1 items of the bundle (0 is padding), P = m + 1 prepared items
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from allmrec.bundle.items import current_items, new_since_training, own_items, prepared_items
from allmrec.core.storage import S3Config, Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.known import Known
from allmrec.data.sources.lists import IdList, read_list
from allmrec.data.trained_items import ids_digest, indices_in, with_counts
from allmrec.nightly.config import ItemsConfig, NightlyConfig
from allmrec.nightly.filters import ItemFilter, build_filter
from allmrec.nightly.lists import ListCount
from allmrec.publishing.run import Run

_VERDICTS = "verdicts"  # in the run's work: of `ItemFilter`


@dataclass(frozen=True)
class ItemSummary:
    """What a run's identity and its report have of the items and of the lists that name some."""

    indices: str  # digest of the prepared items: what the indices of `sequences` mean
    filter: str  # digest of what may be recommended
    lists: tuple[ListCount, ...]


@dataclass(frozen=True)
class ItemSources:
    """What the items of a run are read from. Can be pickled."""

    storage: Storage  # of the bundle and the tables
    bundle: str
    config: NightlyConfig
    stores: S3Config  # of lists outside of the workspace

    def summary(self) -> ItemSummary:
        """Raises ValueError where an input cannot be read, or nothing is left to recommend."""
        lists, prepared, known = self._lists(), prepared_items(self.storage), Known(Workspace(self.storage))
        filter = self._filter(prepared, lists)
        counts = [
            ListCount(found.name, "items", len(found), found.known(known.items(found.spellings)), found.least)
            for found in lists
            if found
        ]
        return ItemSummary(ids_digest(prepared), filter.digest, tuple(counts))

    def read(self, run: Run) -> "RunItems":
        """As the run began with them.

        Raises:
            ValueError: as `summary`; or they have changed before a worker could keep them.
        """
        prepared, kept = prepared_items(self.storage), run.storage.at(run.work)
        if kept.exists(_VERDICTS):
            filter = ItemFilter(np.frombuffer(kept.read(_VERDICTS), np.int8))
        else:
            filter = self._filter(prepared, self._lists())
        if filter.digest != run.identity["filter"]:
            raise ValueError(
                f"what may be recommended is not what it was when run {run.run_id} of {run.run_date} began: the items "
                "or a list of items have changed since; run again"
            )
        kept.create(_VERDICTS, filter.verdict_I.tobytes())
        index_P = indices_in(prepared.column("item_id"), own_items(self.storage, self.bundle, ["item_id"]))
        return RunItems(self, filter, new_since_training(self.storage, self.bundle), index_P)

    def _lists(self) -> list[IdList | None]:
        return [item_list(self.config, self.stores, key) for key in ("blocked_items", "suppressed_items")]

    def _filter(self, prepared: pa.Table, lists: list[IdList | None]) -> ItemFilter:
        own = own_items(self.storage, self.bundle, ["item_id"])
        listed = (found.spellings.to_pylist() if found else [] for found in lists)
        return build_filter(with_counts(own, prepared), self.config.allowed_categories, *listed)


@dataclass(frozen=True)
class RunItems:
    """The bundle's items."""

    sources: ItemSources
    filter: ItemFilter
    new_I: np.ndarray  # bool: new since training
    index_P: np.ndarray  # int64, the bundle's index of each prepared item; 0 where the bundle does not have it

    @cached_property
    def catalogue(self) -> Catalogue:
        """With what is available and how often it was bought as it is prepared now."""
        return Catalogue.from_table(current_items(self.sources.storage, self.sources.bundle))


def item_list(config: NightlyConfig, stores: S3Config, key: str) -> IdList | None:
    """A list of `nightly`: the ids of the config and those of its table; None where there is none."""
    listed: ItemsConfig = getattr(config, key)
    if not listed.ids and not listed.paths:
        return None
    return read_list(key, listed, "item_id", stores, f"nightly.{key}", listed.ids)
