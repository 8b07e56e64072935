"""A bundle in memory: its models, frozen, and the items that they know.

Dimensions: N = n + 1 items (0 is padding), J joint embedding
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.nn.utils import parameters_to_vector

from allmrec.alignment.joint import EmbeddingChoice
from allmrec.bundle.description import read_description
from allmrec.bundle.index import load_item_lists
from allmrec.bundle.items import load_item_models, renumber
from allmrec.bundle.machine_copy import machine_copy
from allmrec.cf.approximate import ItemLists
from allmrec.cf.teacher import Teacher, load_teacher
from allmrec.core.artifacts import read_table
from allmrec.core.rows import Rows, Table
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import Catalogue
from allmrec.data.sequences import Sequences, offsets_of
from allmrec.data.trained_items import with_counts
from allmrec.llm.adapter import WEIGHTS
from allmrec.llm.loading import LLMConfig
from allmrec.llm.prompt import PromptConfig
from allmrec.projection.projectors import ProjectionConfig, Projectors, item_inputs, load_projectors, random_inputs
from allmrec.readout.network import load_readout
from allmrec.recformer.artifact import load_recformer

_PROBES = 4  # users and items that a bundle is tried on


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. Modules are frozen, in eval mode, on the CPU; large tables of items are mapped (`core.rows`)."""

    version: str
    items: pa.Table  # of the `items` schema, see `bundle.items`
    catalogue: Catalogue  # its own; counts of interactions are those at training, unless it was given others
    teacher: Teacher
    e_NJ: Rows  # e_i = f_I(E_i); zeros of items that are new since training
    q_NJ: Rows  # q_i = f_T(Q_i)
    rows_N: torch.Tensor  # int64, the row that training had for each item; 0: it is new
    num_trained: int  # items that training had
    read: dict[str, Rows]  # see `bundle.items.ItemModels`
    trained_N: np.ndarray  # int64, interactions that training had of each item
    projectors: Projectors
    untrained: Projectors  # where Stage-2 started
    config: dict[str, Any]  # resolved sections that the parts were made with
    models: dict[str, dict[str, str]]  # "llm" and "text": name and identity
    data: dict[str, str]  # digests of the tables beside which it was built
    stats: dict[str, dict[str, Any]]  # what each part's training said of itself
    index: Storage | None  # `item_lists` of the teacher's items, if it has them
    systems: dict[str, Storage]  # those trained beside A-LLMRec, by name; each loads from here when it is asked for

    @property
    def prompt(self) -> PromptConfig:
        return PromptConfig(**self.config["prompt"])

    @property
    def llm(self) -> LLMConfig:
        return LLMConfig(**self.config["llm"])

    @property
    def projection(self) -> ProjectionConfig:
        return ProjectionConfig(**self.config["projection"])

    def item_inputs(self, text: bool = False) -> Table:
        """What F_I projects, by item index: as when it was trained.

        With `text`, q_i for all (A-LLMRec (SBERT), paper Table 4).

        Raises:
            ValueError: `text`, and the projectors know no text embeddings.
        """
        projection = self.projection
        if not text:
            items_ND, seed = self.teacher.item_embeddings.detach(), self.config["seed"]
            if projection.item_input == "random":  # drawn for the rows of training; an item that is new has zeros
                return Rows.of(random_inputs(self.num_trained + 1, self.e_NJ.shape[1], seed)).take(self.rows_N)
            return item_inputs(projection, self.embedding_choice(), self.e_NJ, self.q_NJ, items_ND, seed)
        if projection.item_input != "joint":
            raise ValueError(
                f"bundle {self.version} projects the items by {projection.item_input!r} embeddings, which have no q_i; "
                "leave a-llmrec-sbert out of evaluation.systems"
            )
        return self.q_NJ

    def joint_embeddings(self) -> Rows:
        """e_i of every item, or q_i where that shows it, (N, J)."""
        return self.embedding_choice().joint(self.e_NJ, self.q_NJ)

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

    def teacher_beside(self, name: str) -> Teacher:
        """MoRec, CTRL or RECFORMER, for the bundle's items."""
        part = f"systems/{name}"
        if name == "recformer":
            teacher: Teacher = load_recformer(self.systems[name], self.read.get(f"{part}/words"))
        else:
            teacher = load_teacher(self.systems[name])
        renumber(teacher, self.rows_N, self.read.get(part))
        return teacher

    def item_lists(self) -> ItemLists | None:
        """For an index of the teacher's items, if the bundle has them."""
        return None if self.index is None else load_item_lists(self.index)

    def with_counts(self, items: pa.Table) -> "Bundle":
        """The bundle with availability and interactions as a prepared `items` table has them."""
        return replace(self, catalogue=Catalogue.from_table(with_counts(self.items, items)))


def load_bundle(storage: Storage, version: str) -> Bundle:
    """Load this machine's copy, which is verified. Raises ValueError naming what is missing or damaged."""
    description = read_description(storage, version)
    return load_from(machine_copy(Workspace(storage).bundles.at(version), description), description)


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
        index=bundled.index if "index" in description else None,
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
        found: dict[str, Table] = {
            "the teacher's scores": bundle.teacher.scores(x_UD, torch.from_numpy(items).long().expand(_PROBES, -1)),
            "the users' soft tokens": projectors.user(x_UD),
            "the items' soft tokens": projectors.item(bundle.item_inputs()[torch.from_numpy(items).long()]),
        }
    except (IndexError, RuntimeError) as error:
        raise ValueError(
            f"bundle {bundle.version}: its parts do not fit together ({error}); run the training steps again"
        ) from error
    for name, part in bundle.systems.items():
        if name == "tallrec":
            parts = read_tensors(part, WEIGHTS).values()
            found[f"{name}'s weights"] = torch.cat([weight.flatten() for weight in parts])
            continue
        if name != "llm-srec":
            teacher = bundle.teacher_beside(name)
            found |= {
                f"{name}'s vectors of items": teacher.item_embeddings,
                f"{name}'s of users": teacher.represent(users),
            }
            continue
        readout, vectors_NV = load_readout(part)
        weights = parameters_to_vector(readout.parameters())
        found |= {f"{name}'s weights": weights, f"{name}'s vectors of items": vectors_NV}
    for what, values in found.items():
        if not all(block.isfinite().all() for block in Rows.of(values).blocks()):
            raise ValueError(f"bundle {bundle.version}: {what} hold NaN or inf; check the training of its models")
