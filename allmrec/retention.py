"""What nothing needs any more: bundles, fine-tuned encoders, embeddings of texts, checkpoints and copies of models.

Knows what needs them. Published runs are `allmrec.publishing.maintenance`'s.
"""

import time
from collections.abc import Iterable
from typing import Literal

from pyarrow.fs import FileSelector, FileType
from pydantic import Field

from allmrec.alignment.tuned_encoder import DIGEST
from allmrec.bundle.description import DESCRIPTION
from allmrec.bundle.versions import bundle_versions
from allmrec.core.artifacts import MANIFEST, find_manifest
from allmrec.core.commit_log import entries_after, find_json
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.publishing.log import manifest_key, published_dates, run_key
from allmrec.publishing.maintenance import dates, expired
from allmrec.text.cache import TextCache
from allmrec.text.items import text_keys

_EMBEDDINGS = (Workspace.item_text_embeddings, Workspace.fine_tuned_text_embeddings)
_DAY = 86_400


class RetentionConfig(Section):
    """What `allmrec expire`, and `daily` at its end, keeps; null keeps everything."""

    runs: int | None = Field(None, ge=1)  # newest published dates; the current run and what is newer always stay
    trials: int | None = Field(None, ge=1)  # newest dates of trials
    bundles: int | None = Field(
        None, ge=1
    )  # promoted last; the promoted one and those of the runs that stay always stay; with them their encoders
    text_cache: Literal["current"] | None = None  # current: embeddings of the items' present texts
    checkpoint_days: float | None = Field(None, gt=0)  # of a training that was not resumed, since the last one
    model_days: float | None = Field(None, gt=0)  # copies of s3:// models on this machine, since their last use


def needed_bundles(output: Storage, keep_runs: int | None) -> set[str]:
    """The bundles that a rollback to the dates that stay, or resuming a run of one, needs."""
    old = set(expired(output, keep_runs)) if keep_runs else set()
    keys = [manifest_key(day) for day in published_dates(output) if day not in old]
    keys += [run_key(day) for day in dates(output) if day not in old]
    found = [find_json(output, key) for key in keys]
    return {one["identity"]["bundle"] for one in found if one and "bundle" in one["identity"]}


def expired_bundles(workspace: Workspace, keep: int, needed: Iterable[str]) -> list[str]:
    """Versions that were promoted before the `keep` newest ones and that nothing needs, and what killed builds left.

    A whole bundle that was never promoted may be about to be, and stays; one without its description is left of a build
    if nothing was added for a day.
    """
    promoted = list(dict.fromkeys(entry["version"] for entry in reversed(list(entries_after(workspace.bundles, 0)))))
    built = find_json(workspace.bundle, DESCRIPTION)
    kept = {*promoted[:keep], *needed, *([built["version"]] if built else [])}
    whole = bundle_versions(workspace.storage)
    left = [name for name in _unchanged_since(workspace.bundles, 1, 1) if name not in (*whole, "_log")]
    return sorted([version for version in whole if version in set(promoted) - kept] + left)


def delete_bundle(workspace: Workspace, version: str) -> None:
    _delete(workspace.bundles.at(version), DESCRIPTION)


def named_encoders(workspace: Workspace, without: Iterable[str] = ()) -> dict[str, str | None]:
    """Digests of the fine-tuned encoders that the alignment, its training or a bundle names, with their identities.

    Args:
        without: versions of bundles that do not count.
    """
    if not any(True for _ in workspace.encoders.list()):
        return {}
    versions = set(bundle_versions(workspace.storage)) - {*without}
    alignments = [Workspace(workspace.bundles.at(version)).alignment for version in versions]
    manifests = map(find_manifest, [workspace.fine_tuned, workspace.alignment, *alignments])
    stats = [manifest.stats for manifest in manifests if manifest and DIGEST in manifest.stats]
    return {one[DIGEST]: one.get("encoder") for one in stats}


def unused_encoders(workspace: Workspace, expired: Iterable[str]) -> list[str]:
    """Digests of the fine-tuned encoders that nothing names, and that no training has written within a day.

    Args:
        expired: versions of bundles that do not count.
    """
    named = named_encoders(workspace, expired)
    return [digest for digest in _unchanged_since(workspace.encoders, 1, 1) if digest not in named]


def delete_encoder(workspace: Workspace, digest: str) -> None:
    _delete(workspace.encoders.at(digest), MANIFEST)


def _delete(folder: Storage, first: str) -> None:
    """What describes it goes first: it is whole or not there."""
    folder.delete(first)
    for entry in list(folder.list()):
        folder.delete(entry.key)


def unused_texts(workspace: Workspace, encoder: str) -> list[str]:
    """Keys in the text cache of embeddings by other encoders, and of files without a text that an item has now.

    Args:
        encoder: identity of the config's; those that made the embeddings in use, and those that a bundle names, count.
    """
    if find_manifest(workspace.items) is None:
        return []
    manifests, named = [find_manifest(workspace.at(name)) for name in _EMBEDDINGS], named_encoders(workspace)
    encoders = {encoder, *filter(None, named.values()), *(one.stats["encoder"] for one in manifests if one)}
    hashes = text_keys(workspace.items)
    used = set[str]()
    for one in encoders:
        cache = TextCache.of(workspace.storage, one)
        index = cache.index()
        file, _ = index.find(hashes)
        used |= {cache.storage.name(index.files[at]) for at in set(file[file >= 0].tolist())}
    keys = [entry.key for entry in workspace.text_cache.list()]
    return [key for key in keys if workspace.text_cache.name(key) not in used]


def old_checkpoints(workspace: Workspace, days: float) -> list[str]:
    """Folders `<verb>/<identity>` of checkpoints whose newest file is older than that."""
    return _unchanged_since(workspace.checkpoints, 2, days)


def delete_checkpoints(workspace: Workspace, folder: str) -> None:
    filesystem, root = workspace.checkpoints.arrow()
    filesystem.delete_dir(f"{root}/{folder}")


def _unchanged_since(storage: Storage, depth: int, days: float) -> list[str]:
    """Folders at a depth below the storage's root whose newest file is older than that."""
    filesystem, root = storage.arrow()
    newest: dict[str, float] = {}
    for info in filesystem.get_file_info(FileSelector(root, allow_not_found=True, recursive=True)):
        parts = info.path.removeprefix(root).strip("/").split("/")
        if info.type == FileType.File and len(parts) > depth:  # others have put a file beside the folders
            folder = "/".join(parts[:depth])
            newest[folder] = max(newest.get(folder, 0), info.mtime.timestamp())
    return sorted(folder for folder, changed in newest.items() if changed < time.time() - days * _DAY)
