"""What a nightly run is made of: its identity, its users, what may be recommended, and the run before it."""

import datetime
from typing import Any

import allmrec
from allmrec.artifacts import read_manifest, read_table
from allmrec.bundle import check_items, check_llm, latest_bundle, read_description
from allmrec.cf.approximate import load_faiss
from allmrec.data.catalogue import Catalogue
from allmrec.data.known import Known
from allmrec.data.lists import IdList, read_list
from allmrec.data.sequences import num_shards
from allmrec.nightly.carry_over import LastRun
from allmrec.nightly.config import ItemsConfig
from allmrec.nightly.filters import ItemFilter, build_filter
from allmrec.nightly.lists import ListCount, check_lists
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
    """Begin or resume the run of a date; what its workers are told.

    Raises:
        ValueError: too little of a list is known, or the date has another run.
    """
    filter, lists = item_filter(config, storage)
    lists = [*lists, *user_lists(config, storage)]
    check_lists(lists)
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
        lists=tuple(lists),
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


def item_filter(config: Config, storage: Storage) -> tuple[ItemFilter, list[ListCount]]:
    """What may be recommended tonight, and how much is known of the lists that say so."""
    items, nightly = read_table(storage.at("items")).sort_by("item_index"), config.nightly
    lists = {key: item_list(config, key) for key in ("blocked_items", "suppressed_items")}
    filter = build_filter(
        Catalogue.from_table(items),
        items.column("categories"),
        nightly.allowed_categories,
        *(found.spellings.to_pylist() if found else [] for found in lists.values()),
    )
    known = Known(storage)
    return filter, [
        ListCount(found.name, "items", len(found), found.known(known.items(found.spellings)), found.least)
        for found in lists.values()
        if found
    ]


def item_list(config: Config, key: str) -> IdList | None:
    """A list of `nightly`: the ids that stand in the config and those in its table; None where there is none."""
    listed: ItemsConfig = getattr(config.nightly, key)
    if not listed.ids and not listed.paths:
        return None
    return read_list(key, listed, "item_id", config.storage, f"nightly.{key}", listed.ids)


def user_lists(config: Config, storage: Storage) -> list[ListCount]:
    """Of the tables by user that are dealt."""
    configured = [table for table in deal.TABLES if getattr(config.nightly, table.key)]
    return [count for table in configured for count in table.counts(config.nightly, storage)]


def read_users(config: Config, storage: Storage, run_date: datetime.date, limit: int | None) -> NightlyUsers:
    asked, suppressed = (
        storage.at(table.artifact) if getattr(config.nightly, table.key) else None
        for table in (deal.USERS, deal.SUPPRESSED_USERS)
    )
    return NightlyUsers(storage.at("sequences"), run_date, asked, suppressed, limit, config.nightly.timezone)
