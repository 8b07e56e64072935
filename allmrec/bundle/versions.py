"""Which bundles there are, and which one is in use: a log of promotions, of which the newest counts.

bundles/_log/00000003.json                       the version promoted from then on (`allmrec.core.commit_log`)
"""

from datetime import UTC, datetime

from allmrec.bundle.description import DESCRIPTION, verify_bundle
from allmrec.bundle.loading import load_bundle, probe
from allmrec.core.commit_log import Entry, append_next, newest_entry
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace


def promote(storage: Storage, version: str) -> Entry | None:
    """Make a bundle the one that nightly runs and evaluations use; None when it is already.

    Raises:
        ValueError: there is no such bundle, or it is damaged, or it does not score.
    """
    verify_bundle(storage, version)
    probe(load_bundle(storage, version))
    entry = {"version": version, "promoted_at": datetime.now(UTC).isoformat(timespec="seconds")}
    log = Workspace(storage).bundles
    return append_next(log, entry, lambda newest: newest is not None and newest["version"] == version)


def latest_bundle(storage: Storage) -> str:
    """The version that was promoted last. Raises ValueError when none was."""
    newest = newest_entry(Workspace(storage).bundles)
    if newest is None:
        raise ValueError(
            f"{storage.uri}: no bundle is promoted; `allmrec bundle build` promotes what it builds, and "
            "`allmrec bundle promote VERSION` an existing one"
        )
    return newest["version"]


def bundle_versions(storage: Storage) -> list[str]:
    """The existing versions."""
    keys = (entry.key.split("/") for entry in Workspace(storage).bundles.list())
    return [key[0] for key in keys if len(key) == 2 and key[1] == DESCRIPTION]
