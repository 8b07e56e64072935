"""A bundle: everything that scoring needs except the LLM, in one immutable directory that says what it is.

    bundles/<version>/bundle.json                    what it is, and the sha256 of every other file
    bundles/<version>/teacher/                       copies of the artifacts with their manifests, so that each
    bundles/<version>/alignment/                     loads here by the function that loads it from a workspace
    bundles/<version>/projectors/
    bundles/<version>/items/                         ids and words of the items; `allmrec.bundle_items`
    bundles/<version>/new_texts/                     q_i of those whose text training has not seen
    bundles/<version>/systems/llm-srec/              where `baselines` names it
    bundles/_log/00000003.json                       the version promoted from then on (`allmrec.core.commit_log`)

The version is a hash of the content: equal models, config and catalogue make the same version anywhere, whatever was
bought since. `bundle.json` is written last, once the bundle has been loaded and has scored: without it there is no
bundle. Weights are safetensors; nothing is unpickled. Knows where things are; leaves what they compute to their owners.

Dimensions: N = n + 1 items (0 is padding), J joint embedding
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.bundle_items import load_item_models
from allmrec.cf.teacher import Teacher
from allmrec.core.artifacts import read_table, sha256
from allmrec.core.commit_log import Entry, append_next, newest_entry
from allmrec.core.hashing import fingerprint
from allmrec.core.pretrained import model_identity
from allmrec.core.settings import Section
from allmrec.core.storage import Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences, offsets_of
from allmrec.data.trained_items import ids_digest, indices_in, read_trained_items, with_counts
from allmrec.llm.loading import LLMConfig
from allmrec.llm.prompt import PromptConfig
from allmrec.projection.projectors import ProjectionConfig, Projectors, item_inputs, load_projectors, random_inputs

MODELS = (Workspace.teacher, Workspace.alignment, Workspace.projectors)
DESCRIPTION = "bundle.json"
FORMAT = 3
_PROBES = 4  # users and items that a bundle is tried on


class BundleConfig(Section):
    """What `bundle build` puts together."""

    # Items with fewer training interactions, or without an E_i, are shown to the LLM by their text embedding q_i.
    # Stage-2 trains on the same choice.
    min_interactions_for_cf: int = Field(1, ge=0)


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. Modules are frozen, in eval mode, on the CPU."""

    version: str
    items: pa.Table  # of the `items` schema, see `bundle_items`
    catalogue: Catalogue  # its own; counts of interactions are those at training, unless it was given others
    teacher: Teacher
    e_NJ: torch.Tensor  # e_i = f_I(E_i); zeros of items that are new since training
    q_NJ: torch.Tensor  # q_i = f_T(Q_i)
    rows_N: torch.Tensor  # int64, the row that training had for each item; 0: it is new
    num_trained: int  # items that training had
    trained_N: np.ndarray  # int64, interactions that training had of each item
    projectors: Projectors
    untrained: Projectors  # where Stage-2 started
    config: dict[str, Any]  # resolved sections that the parts were made with
    models: dict[str, dict[str, str]]  # "llm" and "text": name and identity
    data: dict[str, str]  # digests of the tables beside which it was built
    stats: dict[str, dict[str, Any]]  # what each part's training said of itself
    systems: dict[str, Storage]  # those trained beside A-LLMRec, by name; each loads from here when it is asked for

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
            items_ND, seed = self.teacher.item_embeddings.detach(), self.config["seed"]
            if projection.item_input == "random":  # drawn for the rows of training; an item that is new has zeros
                return random_inputs(self.num_trained + 1, self.e_NJ.shape[1], seed)[self.rows_N]
            return item_inputs(projection, self.embedding_choice(), self.e_NJ, self.q_NJ, items_ND, seed)
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
        least = self.config["bundle"]["min_interactions_for_cf"]
        choice = EmbeddingChoice.of(self.trained_N, self.teacher.item_embeddings, least)
        return replace(choice, unknown_N=choice.unknown_N | (self.rows_N == 0))

    def item_counts(self) -> dict[str, int]:
        """How many items are shown by which embedding, and how many are new since training."""
        return self.embedding_choice().embedding_counts() | {"items new since training": int(self.new_N.sum())}

    @property
    def new_N(self) -> torch.Tensor:
        """bool (N,): the items that are new since training; padding is none of them."""
        return (self.rows_N == 0) & (torch.arange(len(self.rows_N)) > 0)

    def with_counts(self, items: pa.Table) -> "Bundle":
        """The bundle with availability and interactions as a prepared `items` table has them."""
        return replace(self, catalogue=Catalogue.from_table(with_counts(self.items, items)))


def load_bundle(storage: Storage, version: str) -> Bundle:
    """Load and verify. Raises ValueError naming what is missing or damaged."""
    return load_from(Workspace(storage).bundles.at(version), verify_bundle(storage, version))


def load_from(root: Storage, description: Mapping[str, Any]) -> Bundle:
    """Load what is in a bundle's folder. Raises ValueError where the parts do not fit together."""
    bundled = Workspace(root)  # its parts have the workspace's names
    items = read_table(bundled.items)
    try:
        models = load_item_models(bundled, items)
    except (IndexError, KeyError, RuntimeError) as error:
        raise ValueError(f"{root.uri}: its models do not fit its items ({error}); train again and build it") from error
    catalogue = Catalogue.from_table(items)
    return Bundle(
        version=description["version"],
        items=items,
        catalogue=catalogue,
        **{field.name: getattr(models, field.name) for field in fields(models)},
        trained_N=catalogue.popularity,
        projectors=load_projectors(bundled.projectors),
        untrained=load_projectors(bundled.projectors, untrained=True),
        systems={part.rpartition("/")[2]: bundled.at(part) for part in description.get("systems", {})},
        **{key: description[key] for key in ("config", "models", "data", "stats")},
    )


@torch.inference_mode()
def probe(bundle: Bundle) -> None:
    """Score a few made-up users without the LLM. Raises ValueError where the parts do not fit together or give NaN."""
    items = np.linspace(1, bundle.catalogue.num_items, _PROBES).astype(np.int32)
    ids = pa.array([f"probe {number}" for number in range(_PROBES)])
    users = Sequences(
        ids, offsets_of(np.arange(1, _PROBES + 1)), np.concatenate([items[: n + 1] for n in range(_PROBES)])
    )
    try:
        x_UD, projectors = bundle.teacher.represent(users), bundle.projectors
        found = {
            "the teacher's scores": bundle.teacher.scores(x_UD, torch.from_numpy(items).long().expand(_PROBES, -1)),
            "the users' soft tokens": projectors.user(x_UD),
            "the items' soft tokens": projectors.item(bundle.item_inputs()[torch.from_numpy(items).long()]),
        }
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"bundle {bundle.version}: its parts do not fit together ({error}); run the training steps again"
        ) from error
    for what, values in found.items():
        if not values.isfinite().all():
            raise ValueError(f"bundle {bundle.version}: {what} hold NaN or inf; look at the training of its models")


def verify_bundle(storage: Storage, version: str) -> dict[str, Any]:
    """Compare every file with `bundle.json`, and return that. Raises ValueError naming what is missing or damaged."""
    description = read_description(storage, version)
    check_files(Workspace(storage).bundles.at(version), description)
    return description


def check_files(root: Storage, description: Mapping[str, Any]) -> None:
    """Raises ValueError naming what is missing or damaged."""
    for name, entry in description["files"].items():
        try:
            data = root.read(name)
        except FileNotFoundError:
            raise ValueError(
                f"{root.name(name)} is missing; restore the bundle from a copy or build it again"
            ) from None
        if sha256(data) != entry["sha256"]:
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


def check_items(description: Mapping[str, Any], items: Storage) -> None:
    """Raises ValueError when the indices of a prepared `items` table are not the bundle's."""
    if ids_digest(read_table(items).sort_by("item_index")) != description["item_ids"]:
        raise ValueError(
            f"bundle {description['version']} numbers other items than {items.uri}; run `allmrec bundle build`, which "
            "takes new items without training"
        )


def current_items(storage: Storage, version: str) -> pa.Table:
    """The bundle's `items`, with availability, categories and interactions as they are prepared now."""
    return with_counts(_own_items(storage, version), read_table(Workspace(storage).items))


def renumbering(storage: Storage, version: str) -> np.ndarray:
    """The bundle's index of each item that is prepared now: int64 (I,); 0 where the bundle does not have the item."""
    prepared = read_table(Workspace(storage).items).sort_by("item_index")
    return indices_in(prepared.column("item_id"), _own_items(storage, version))


def new_since_training(storage: Storage, version: str) -> np.ndarray:
    """bool (N,): the bundle's items that its models were not trained on; padding is none of them."""
    bundled = Workspace(Workspace(storage).bundles.at(version))
    rows_N = indices_in(read_table(bundled.items).column("item_id"), read_trained_items(bundled.teacher))
    return np.append(False, rows_N[1:] == 0)


def _own_items(storage: Storage, version: str) -> pa.Table:
    return read_table(Workspace(Workspace(storage).bundles.at(version)).items)


def promote(storage: Storage, version: str) -> Entry | None:
    """Make a bundle the one that nightly runs and evaluations use; None when it is already.

    Raises:
        ValueError: there is no such bundle, or it is damaged, or it does not score.
    """
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
