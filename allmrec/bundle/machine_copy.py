"""A bundle's files on this machine: fetched and verified once, by the first worker, and shared by all that follow.

A copy is named after the version and the digests of the files, so it is never out of date. A bundle on a disk is not
copied; its files are read through once, and again where they have changed (`allmrec.core.file_digests`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allmrec.bundle.description import check_files
from allmrec.core.artifacts import sha256
from allmrec.core.file_digests import file_sha256
from allmrec.core.hashing import fingerprint
from allmrec.core.machine_cache import filled_folder
from allmrec.core.storage import LocalStorage, Storage
from allmrec.core.storage.local import VerifiedFolder

COPIES = "bundles"
_KEPT_DAYS = 7  # a copy that no worker has asked for since


def machine_copy(root: Storage, description: Mapping[str, Any]) -> VerifiedFolder:
    """The files of a bundle's folder, verified.

    Args:
        description: `bundle.json`, of `read_description`.

    Raises:
        ValueError: naming what is missing or damaged.
    """
    if isinstance(root, LocalStorage):
        check_files(root, description, lambda name: file_sha256(root.root / name))
        return VerifiedFolder(root.root)

    def fill(draft: Path) -> None:
        target = LocalStorage(draft)

        def copied(name: str) -> str:
            data = root.read(name)
            target.write(name, data)
            return sha256(data)

        check_files(root, description, copied)

    key = f"{description['version']}-{fingerprint(description)[:12]}"
    return VerifiedFolder(filled_folder(COPIES, key, fill, _KEPT_DAYS))
