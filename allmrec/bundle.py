"""A bundle: everything that scoring needs except the LLM, in one immutable directory that says what it is.

    bundles/<version>/bundle.json                    what it is, and the sha256 of every other file
    bundles/<version>/teacher/                       copies of the artifacts with their manifests, so that each
    bundles/<version>/alignment/                     loads here by the function that loads it from a workspace
    bundles/<version>/projectors/
    bundles/<version>/items/
    bundles/_log/00000003.json                       the version promoted from then on (`allmrec.core.commit_log`)

The version is a hash of the content: equal parts, models and config make the same version anywhere. Weights are
safetensors; nothing is unpickled. Knows where things are; leaves what they compute to their owners.

Dimensions: N = n + 1 items (0 is padding), J joint embedding
"""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from pydantic import Field

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.alignment.network import load_joint
from allmrec.cf.teacher import Teacher, load_teacher
from allmrec.core.artifacts import MANIFEST, Manifest, file_entry, read_file, read_manifest, sha256
from allmrec.core.commit_log import Entry, append_next, newest_entry
from allmrec.core.hashing import fingerprint
from allmrec.core.pretrained import model_identity
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.version import __version__
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.llm.loading import LLMConfig
from allmrec.llm.prompt import PromptConfig
from allmrec.projection.projectors import ProjectionConfig, Projectors, item_inputs, load_projectors

PARTS = (Workspace.teacher, Workspace.alignment, Workspace.projectors, Workspace.items)
DESCRIPTION = "bundle.json"
DEPENDENCIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "safetensors", "ray", "deepspeed")
_FORMAT = 2


class BundleConfig(Section):
    """What `bundle build` puts together."""

    # Items with fewer training interactions, or without an E_i, are shown to the LLM by their text embedding q_i.
    # Stage-2 trains on the same choice.
    min_interactions_for_cf: int = Field(1, ge=0)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. Modules are frozen, in eval mode, on the CPU."""

    version: str
    catalogue: Catalogue
    teacher: Teacher
    e_NJ: torch.Tensor  # e_i = f_I(E_i)
    q_NJ: torch.Tensor  # q_i = f_T(Q_i)
    projectors: Projectors
    untrained: Projectors  # where Stage-2 started
    config: dict[str, Any]  # resolved sections that the parts were made with
    models: dict[str, dict[str, str]]  # "llm" and "text": name and identity
    data: dict[str, str]  # digests of the tables that the models were trained on
    stats: dict[str, dict[str, Any]]  # what each part's training said of itself

    @property
    def prompt(self) -> PromptConfig:
        return PromptConfig(**self.config["prompt"])

    @property
    def llm(self) -> LLMConfig:
        return LLMConfig(**self.config["llm"])

    def item_inputs(self, text: bool = False) -> torch.Tensor:
        """What F_I projects, by item index: as when it was trained.

        With `text`, q_i for all (A-LLMRec (SBERT), paper Table 4).

        Raises:
            ValueError: `text`, and the projectors know no text embeddings.
        """
        projection = ProjectionConfig(**self.config["projection"])
        if not text:
            items_ND = self.teacher.item_embeddings.detach()
            return item_inputs(projection, self.embedding_choice(), self.e_NJ, self.q_NJ, items_ND, self.config["seed"])
        if projection.item_input != "joint":
            raise ValueError(
                f"bundle {self.version} projects the items by {projection.item_input!r} embeddings, which have no q_i; "
                "leave a-llmrec-sbert out of evaluation.systems"
            )
        return self.q_NJ

    def uses_text_embedding(self) -> torch.Tensor:
        """bool (N,): the items that q_i shows."""
        return self.embedding_choice().uses_text_N

    def embedding_choice(self) -> EmbeddingChoice:
        return EmbeddingChoice.of(
            self.catalogue.popularity, self.teacher.item_embeddings, self.config["bundle"]["min_interactions_for_cf"]
        )


def build_bundle(storage: Storage, config: Mapping[str, Any]) -> str:
    """Gather the workspace's artifacts into `bundles/<version>/`; building the same again changes nothing.

    Args:
        storage: of a workspace that has the artifacts PARTS and `sequences`.
        config: resolved sections; text, llm, prompt and bundle among them.

    Returns:
        the version.

    Raises:
        ValueError: an artifact is missing or damaged, names it; or the projectors were trained on other forms of the
            items than `config` says.
    """
    manifests = {part: read_manifest(storage.at(part)) for part in PARTS}
    _check_embeddings(manifests["projectors"], config)
    content = {
        "format": _FORMAT,
        "code": __version__,
        "config": dict(config),
        "models": {
            "llm": _identity(config["llm"]["name"], config["llm"]["revision"]),
            "text": _identity(config["text"]["model"], config["text"]["revision"]),
        },
        "data": {table: read_manifest(storage.at(table)).digest for table in (Workspace.items, Workspace.sequences)},
        "parts": {part: manifest.digest for part, manifest in manifests.items()},
    }
    version = fingerprint(content)[:12]
    root = Workspace(storage).bundles.at(version)
    files = {}
    for part, manifest in manifests.items():
        for name in manifest.files:
            data = read_file(storage.at(part), manifest, name)
            root.create(f"{part}/{name}", data)
            files[f"{part}/{name}"] = file_entry(data)
        # Manifests hold timings, so the first builder's are kept where two build one version.
        root.create(f"{part}/{MANIFEST}", storage.at(part).read(MANIFEST))
        files[f"{part}/{MANIFEST}"] = file_entry(root.read(f"{part}/{MANIFEST}"))
    description = {
        "version": version,
        **content,
        "dependencies": {"python": platform.python_version(), **_versions()},
        "files": dict(sorted(files.items())),
        "stats": {part: manifest.stats for part, manifest in manifests.items()},
    }
    description["digest"] = fingerprint(description)
    root.create(DESCRIPTION, json.dumps(description, indent=1, default=str).encode())
    return version


def load_bundle(storage: Storage, version: str) -> Bundle:
    """Load and verify. Raises ValueError naming what is missing or damaged."""
    bundled = Workspace(Workspace(storage).bundles.at(version))  # its parts have the workspace's names
    description = verify_bundle(storage, version)
    e_NJ, q_NJ = load_joint(bundled.alignment)
    return Bundle(
        version=version,
        catalogue=Catalogue.read(bundled.items),
        teacher=load_teacher(bundled.teacher),
        e_NJ=e_NJ,
        q_NJ=q_NJ,
        projectors=load_projectors(bundled.projectors),
        untrained=load_projectors(bundled.projectors, untrained=True),
        **{key: description[key] for key in ("config", "models", "data", "stats")},
    )


def verify_bundle(storage: Storage, version: str) -> dict[str, Any]:
    """Compare every file with `bundle.json`, and return that. Raises ValueError naming what is missing or damaged."""
    root = Workspace(storage).bundles.at(version)
    description = read_description(storage, version)
    for name, entry in description["files"].items():
        try:
            data = root.read(name)
        except FileNotFoundError:
            raise ValueError(
                f"{root.name(name)} is missing; restore the bundle from a copy or build it again"
            ) from None
        if sha256(data) != entry["sha256"]:
            raise ValueError(f"{root.name(name)} is damaged: its sha256 is not the bundle's; restore it from a copy")
    return description


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
    if description.get("format") != _FORMAT:
        raise ValueError(
            f"{root.uri}: bundle format {description.get('format')} is not this version's ({_FORMAT}); run "
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


def check_items(description: Mapping[str, Any], items: Storage) -> None:
    """Raises ValueError when `items` is another table than the bundle's: its indices may mean other items."""
    if read_manifest(items).digest != description["data"]["items"]:
        raise ValueError(
            f"bundle {description['version']} holds another items table than {items.uri}; run `allmrec bundle build` "
            "where the items are the same, and the steps from embed on where some are new"
        )


def promote(storage: Storage, version: str) -> Entry | None:
    """Make a bundle the one that nightly runs and evaluations use; None when it is already.

    Raises:
        ValueError: there is no such bundle, or it is damaged.
    """
    verify_bundle(storage, version)
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


def _check_embeddings(projectors: Manifest, config: Mapping[str, Any]) -> None:
    """Raises ValueError when F_I was trained on other inputs than a bundle of this config would give it."""
    for section, key in (("projection", "item_input"), ("bundle", "min_interactions_for_cf")):
        made, wanted = projectors.config.get(section, {}).get(key), config[section][key]
        if made != wanted:
            raise ValueError(
                f"the projectors were trained with {section}.{key} {made!r}, and the config says {wanted!r}; run "
                "train-projection again"
            )


def _identity(name: str, revision: str | None) -> dict[str, str]:
    return {"name": name, "identity": model_identity(name, revision)}


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in DEPENDENCIES}
