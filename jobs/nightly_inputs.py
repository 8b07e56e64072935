"""What a nightly run is made of: its identity, its users, what may be recommended, and the run before it."""

import datetime
from typing import Any

import pyarrow as pa

import allmrec
from allmrec.artifacts import read_manifest, read_table
from allmrec.bundle import check_items, check_llm, latest_bundle, read_description
from allmrec.cf.approximate import load_faiss
from allmrec.data.catalogue import Catalogue
from allmrec.data.clean import is_id
from allmrec.data.config import SourceConfig
from allmrec.data.sequences import num_shards
from allmrec.data.sources import Column, open_source
from allmrec.nightly.carry_over import LastRun
from allmrec.nightly.config import ItemsConfig
from allmrec.nightly.filters import ItemFilter, build_filter
from allmrec.nightly.publish import Run
from allmrec.nightly.score import Night
from allmrec.nightly.users import NightlyUsers
from allmrec.storage import Storage
from jobs import deal, fit_blend
from jobs.config import Config
from jobs.step import Facts


def open_night(
    config: Config,
    storage: Storage,
    output: Storage,
    run_date: datetime.date,
    full: bool = False,
    limit: int | None = None,
) -> Night:
    """Begin or resume the run of a date; what its workers are told."""
    filter = item_filter(config, storage)
    identity = run_identity(config, storage, filter, limit)
    return Night(
        Run.open(output, run_date, identity),
        storage,
        config.nightly,
        config.llm,
        config.seed,
        read_users(config, storage, run_date, limit),
        filter,
        identity["weight"],
        given=storage.at("candidates") if config.nightly.candidates else None,
        last=LastRun.before(output, run_date, num_shards(storage.at("sequences"))),
        carry_over=not full,
    )


def check_inputs(config: Config, storage: Storage) -> dict[str, Any]:
    """The bundle's description. Raises ValueError where bundle, LLM and items do not fit together."""
    description = read_description(storage, latest_bundle(storage))
    check_llm(description, config.llm)
    check_items(description, storage.at("items"))
    above = config.nightly.approximate_above
    if above is not None and read_manifest(storage.at("items")).rows > above:
        load_faiss()  # before any worker starts
    return description


def run_identity(config: Config, storage: Storage, filter: ItemFilter, limit: int | None) -> Facts:
    """What the result depends on: two runs of a date that agree on it are the same run."""
    description = check_inputs(config, storage)
    fixed = {"llm": 1.0, "teacher": 0.0}
    ranker = config.nightly.ranker
    return {
        "bundle": description["version"],
        "llm": description["models"]["llm"]["identity"],
        "dtype": config.llm.dtype,
        **{name: read_manifest(storage.at(name)).digest for name in ("sequences", "items")},
        **{
            table.artifact: read_manifest(storage.at(table.artifact)).digest
            for table in deal.TABLES
            if getattr(config.nightly, table.key)
        },
        "filter": filter.digest,
        "nightly": config.nightly.ranking(),
        "weight": fixed[ranker] if ranker in fixed else fit_blend.fitted_weight(storage),
        "limit": limit,
        "seed": config.seed,
        "code": allmrec.__version__,
    }


def item_filter(config: Config, storage: Storage) -> ItemFilter:
    """What may be recommended tonight."""
    items, nightly = read_table(storage.at("items")).sort_by("item_index"), config.nightly
    return build_filter(
        Catalogue.from_table(items),
        items.column("categories"),
        nightly.allowed_categories,
        read_ids(config, "blocked_items", "item_id"),
        read_ids(config, "suppressed_items", "item_id"),
    )


def read_ids(config: Config, key: str, column: str) -> list[str]:
    """A list of `nightly`: the ids that stand in the config and those in its table's column."""
    listed: SourceConfig | None = getattr(config.nightly, key)
    ids = list(listed.ids) if isinstance(listed, ItemsConfig) else []
    if listed is None or not listed.paths:
        return ids
    source = open_source(
        key, listed, config.storage, {column: Column(True, is_id, "text or an integer")}, f"nightly.{key}"
    )
    found = [table.column(column) for piece in source.pieces for table in source.read(piece)]
    return ids + pa.chunked_array(found).cast(pa.string()).drop_null().to_pylist()


def read_users(config: Config, storage: Storage, run_date: datetime.date, limit: int | None) -> NightlyUsers:
    asked, suppressed = (
        storage.at(table.artifact) if getattr(config.nightly, table.key) else None
        for table in (deal.USERS, deal.SUPPRESSED_USERS)
    )
    return NightlyUsers(storage.at("sequences"), run_date, asked, suppressed, limit)
