"""A bundle: everything that scoring needs except the LLM, in one immutable directory that says what it is.

    bundles/<version>/bundle.json                    what it is, and the sha256 of every other file
    bundles/<version>/teacher/                       copies of the artifacts with their manifests, so that each
    bundles/<version>/alignment/                     loads here by the function that loads it from a workspace
    bundles/<version>/projectors/
    bundles/<version>/items/                         ids and words of the items; `allmrec.bundle.items`
    bundles/<version>/new_texts/                     q_i of those whose text training has not seen
    bundles/<version>/index/                         where `nightly.approximate_above` asks for it: `bundle.index`
    bundles/<version>/systems/llm-srec/              where `baselines` names it; likewise tallrec and others
    bundles/_log/00000003.json                       the version promoted from then on (`allmrec.core.commit_log`)

The version is a hash of the content: equal models, config and catalogue make the same version anywhere, whatever was
bought since. `bundle.json` is written last, once the bundle has been loaded and has scored: without it there is no
bundle. Weights are safetensors; nothing is unpickled. Knows where things are; leaves what they compute to their owners.

Where Stage-1 fine-tuned the text encoder, the alignment names it by its digest: it is in the workspace once, for all
bundles of it (`allmrec.alignment.tuned_encoder`).
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from allmrec.alignment.tuned_encoder import DIGEST, encoder_digest
from allmrec.core.artifacts import MANIFEST, read_manifest, read_table, sha256
from allmrec.core.hashing import fingerprint
from allmrec.core.pretrained import model_identity
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import in_order
from allmrec.data.trained_items import ids_digest
from allmrec.llm.loading import LLMConfig

MODELS = (Workspace.teacher, Workspace.alignment, Workspace.projectors)
DESCRIPTION = "bundle.json"
FORMAT = 3


def verify_bundle(storage: Storage, version: str) -> dict[str, Any]:
    """Compare every file with `bundle.json`, and return that. Raises ValueError naming what is missing or damaged."""
    description = read_description(storage, version)
    check_files(Workspace(storage).bundles.at(version), description)
    return description


def verify_encoder(storage: Storage, description: Mapping[str, Any]) -> None:
    """Compare the fine-tuned text encoder that a bundle names, if it does, with its digest. Raises as `verify_bundle`.

    A bundle scores without it: it is what new items need.
    """
    digest = description["stats"][Workspace.alignment].get(DIGEST)
    if digest is None:
        return
    root = Workspace(storage).encoders.at(digest)
    if not root.exists(MANIFEST):
        raise ValueError(f"{root.uri}, the encoder of new items, is missing; restore it from a copy or train again")
    manifest = read_manifest(root)
    if encoder_digest(manifest) != digest:
        raise ValueError(f"{root.name(MANIFEST)} is damaged: it is not of {digest}; restore it from a copy")
    check_files(root, {"files": manifest.files})


def check_files(root: Storage, description: Mapping[str, Any], digest_of: Callable[[str], str] | None = None) -> None:
    """Raises ValueError naming what is missing or damaged.

    Args:
        digest_of: what gives a file's sha256, or raises FileNotFoundError; by default it is read through.
    """
    for name, entry in description["files"].items():
        try:
            digest = sha256(root.read(name)) if digest_of is None else digest_of(name)
        except FileNotFoundError:
            raise ValueError(
                f"{root.name(name)} is missing; restore the bundle from a copy or build it again"
            ) from None
        if digest != entry["sha256"]:
            raise ValueError(f"{root.name(name)} is damaged: its sha256 is not the bundle's; restore it from a copy")


def read_description(storage: Storage, version: str) -> dict[str, Any]:
    """`bundle.json`, verified: what a bundle is, without loading it."""
    root = Workspace(storage).bundles.at(version)
    try:
        description = json.loads(root.read(DESCRIPTION))
        digest = description.pop("digest")
    except FileNotFoundError:
        raise ValueError(f"{root.uri}: no such bundle; `allmrec bundle list` shows what there is") from None
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{root.name(DESCRIPTION)} is damaged; restore it from a copy") from None
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{root.uri}: bundle format {description.get('format')} is not this version's ({FORMAT}); run "
            "train-projection and bundle again, or use the allmrec that built it"
        )
    if fingerprint(description) != digest or description["version"] != version:
        raise ValueError(f"{root.name(DESCRIPTION)} is damaged: it does not match its digest; restore it from a copy")
    return description


def check_llm(description: Mapping[str, Any], llm: LLMConfig) -> None:
    """Raises ValueError when `llm` is another model than the one that the bundle's projectors were trained into."""
    expected = description["models"]["llm"]
    if model_identity(llm.name, llm.revision) != expected["identity"]:
        raise ValueError(
            f"bundle {description['version']} was trained into the LLM {expected['name']!r}; llm.name {llm.name!r} is "
            "another model or another revision of it: point llm.name at that one, or run train-projection and bundle"
        )


def check_system(description: Mapping[str, Any], name: str) -> None:
    """Raises ValueError when the bundle was built without a system."""
    if f"systems/{name}" not in description.get("systems", {}):
        raise ValueError(
            f"bundle {description['version']} has no {name}; name it in `baselines`, then run train-baselines and "
            "bundle build"
        )


def part_of_system(description: Mapping[str, Any], name: str) -> dict[str, str]:
    """The digest of a system's part of the bundle, by the part."""
    part = f"systems/{name}"
    return {part: description["systems"][part]}


def check_items(description: Mapping[str, Any], items: Storage) -> None:
    """Raises ValueError when the indices of a prepared `items` table are not the bundle's."""
    if ids_digest(in_order(read_table(items, columns=["item_index", "item_id"]))) != description["item_ids"]:
        raise ValueError(
            f"bundle {description['version']} numbers other items than {items.uri}; run `allmrec bundle build`, which "
            "takes new items without training"
        )
