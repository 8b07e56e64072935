"""The items of a bundle: those of the catalogue when it was built, on models that were trained on earlier ones.

An item that is new since training has no E_i, but it has a text: q_i = f_T^enc(Q_i) shows it to the LLM, and the
teacher reads and scores it by f_I^dec(q_i), as it does all items of another catalogue (`alignment.transfer`); a teacher
that knows items by their texts (`teacher.items: text`) by what it makes of this one, as of any other. A bundle
holds the trained models as they were written, and beside them `items` (ids and words now, counts at training) and
`new_texts`: q_i, and such a teacher's E_i, of every item whose text training has not seen.

Dimensions: N = n + 1 items of the bundle (0 is padding), M with a new text, D = teacher.dim, J joint embedding
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from allmrec.alignment.network import load_joint, load_network
from allmrec.cf.teacher import Teacher, load_teacher
from allmrec.core.artifacts import read_manifest, read_part, read_rows, read_table
from allmrec.core.columns import take
from allmrec.core.rows import Rows
from allmrec.core.storage import Storage
from allmrec.core.tensor_files import read_tensors
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import in_order
from allmrec.data.trained_items import column_of, counts_of, ids_digest, indices_in, read_trained_items, with_counts
from allmrec.recformer.artifact import read_new_items
from allmrec.text.embeddings import to_tensor
from schemas import items as items_schema

NEW_Q = "q.safetensors"
_READ = "E of "  # before the name of a model that reads texts, in NEW_Q


@dataclass(frozen=True)
class ItemModels:
    """What a bundle's models know of its items."""

    teacher: Teacher
    e_NJ: Rows  # e_i; zeros of an item that is new since training
    q_NJ: Rows  # q_i
    rows_N: torch.Tensor  # int64, the row that training had for the item; 0: it is new
    num_trained: int  # items that training had
    # By each model that knows items by their texts: E_ND of those whose text is new, and of one that reads sentences
    # `<model>/words`, (N, L).
    read: dict[str, Rows]


def bundle_items(models: Workspace, prepared: Storage) -> pa.Table:
    """The `items` table of a bundle: ids and words of the prepared table; interactions are those at training.

    Raises:
        ValueError: teacher and alignment were trained on different items.
    """
    trained = read_trained_items(models.teacher, ["item_id", "popularity", "interactions"])
    if ids_digest(trained) != ids_digest(read_trained_items(models.alignment, ["item_id"])):
        raise ValueError(
            f"{models.teacher.uri} and {models.alignment.uri} were trained on different items; run train-alignment and "
            "train-projection again"
        )
    items = in_order(read_table(prepared, columns=["item_id", "title", "item_index", "text_hash"]))
    columns = dict(zip(items.column_names, items.columns, strict=True))
    columns |= counts_of(items.column("item_id"), trained)
    blank = {name: pa.nulls(len(items), items_schema.SCHEMA.field(name).type) for name in items_schema.SCHEMA.names}
    return pa.table({name: columns.get(name, blank[name]) for name in items_schema.SCHEMA.names})


def new_texts(models: Workspace, items: pa.Table) -> np.ndarray:
    """int64 (M,): indices of the items whose text the alignment has not seen, in a table of `bundle_items`."""
    trained = read_trained_items(models.alignment, ["item_id", "text_hash"])
    seen = column_of(items.column("item_id"), trained, "text_hash")
    same = pc.fill_null(pc.equal(items.column("text_hash"), seen), False)
    return np.flatnonzero(~same.to_numpy(zero_copy_only=False)) + 1


def embed_new_texts(
    models: Workspace,
    items: pa.Table,
    texts: Storage,
    frozen: Storage,
    prepared: Storage,
    systems: Sequence[str] = (),
) -> dict[str, torch.Tensor]:
    """What `NEW_Q` holds: the indices of `new_texts`, and their q_i = f_T^enc(Q_i); E_i by those that read texts.

    Args:
        items: of `bundle_items`.
        texts: embeddings of the prepared items by Stage-1's encoder; only read where there is a new text.
        frozen: `item_text_embeddings`, by the encoder that the teacher reads; only read by such a teacher.
        prepared: the `items` table that `items` was made of, with all words.

    Raises:
        ValueError: it is of other items or texts, or of another encoder than the alignment was trained with.
    """
    indices, network = new_texts(models, items), load_network(models.alignment)
    q_MJ = torch.zeros(0, network.item_decoder.in_features)
    if len(indices):
        encoder = read_manifest(models.alignment).stats.get("encoder")
        if read_manifest(texts).stats.get("encoder") != encoder:
            raise ValueError(
                f"{texts.uri} was not embedded by {encoder}, as in training; set text.model and text.dtype to what "
                "they were, or train again"
            )
        with torch.inference_mode():
            parts = [network.encode_texts(part_RS) for part_RS in _embeddings(texts, items, indices)]
            q_MJ = torch.cat(parts)
    new = {"item_index": torch.from_numpy(indices), "q": q_MJ}
    for name in (Workspace.teacher, *systems) if len(indices) else ():
        if name == Workspace.recformer:
            rows = read_rows(prepared, read_manifest(prepared), indices - 1)
            new[_READ + name], new[f"{_READ}{name}/words"] = read_new_items(models.at(name), rows)
            continue
        e_MD = _embed_for_teacher(models.at(name), items, indices, frozen)
        new |= {} if e_MD is None else {_READ + name: e_MD}
    return new


def _embed_for_teacher(model: Storage, items: pa.Table, indices: np.ndarray, frozen: Storage) -> torch.Tensor | None:
    """E_i of some items by their texts, (M, D); None of a model that reads none."""
    manifest = read_manifest(model)
    if manifest.config.get("teacher", {}).get("items") != "text":
        return None
    if read_manifest(frozen).stats.get("encoder") != manifest.stats.get("encoder"):
        raise ValueError(
            f"{frozen.uri} was not embedded by {manifest.stats.get('encoder')}, by which {model.uri} was trained; set "
            "text.model and text.dtype to what they were, or train again"
        )
    with torch.inference_mode():
        teacher = load_teacher(model)
        parts = list[torch.Tensor]()
        for part_RS in _embeddings(frozen, items, indices):
            e_RD = teacher.embed_texts(part_RS)
            assert e_RD is not None, "a teacher that knows items by their texts reads them"
            parts.append(e_RD)
        return torch.cat(parts)


def load_item_models(bundled: Workspace, items: pa.Table) -> ItemModels:
    """The bundle's models, for its items."""
    trained = read_trained_items(bundled.teacher, ["item_id"])
    rows_N, num_trained = torch.from_numpy(indices_in(items.column("item_id"), trained)), len(trained)
    teacher, new = load_teacher(bundled.teacher), read_tensors(bundled.new_texts, NEW_Q)
    e_NJ, q_NJ = (trained_NJ.take(rows_N) for trained_NJ in load_joint(bundled.alignment))
    q_NJ = q_NJ.replaced(new["item_index"], new["q"])
    read = {
        name.removeprefix(_READ): _by_item(len(rows_N), new["item_index"], new[name])
        for name in new
        if name.startswith(_READ)
    }
    new_ND, new_N = read.get(Workspace.teacher), (rows_N == 0).nonzero()[1:, 0]  # the first one is padding
    if new_ND is None and len(new_N):
        new_ND = _by_item(len(rows_N), new_N, load_network(bundled.alignment).decode_items(q_NJ[new_N]))
    renumber(teacher, rows_N, new_ND)
    return ItemModels(teacher, e_NJ, q_NJ, rows_N, num_trained, read)


def renumber(teacher: Teacher, rows_N: torch.Tensor, new_ND: Rows | None) -> None:
    """Give a teacher the bundle's items; a new one has zeros where the teacher knows nothing of it."""
    old_ND = teacher.item_embeddings
    if not torch.equal(rows_N, torch.arange(len(old_ND))):
        nothing_ND = _by_item(len(rows_N), rows_N[:0], old_ND.new_zeros(0, old_ND.shape[1]))
        teacher.take_items(rows_N, nothing_ND if new_ND is None else new_ND)


def _by_item(num_rows: int, items_M: torch.Tensor, new_MD: torch.Tensor) -> Rows:
    """Rows of some items, (N, D); of all others zeros."""
    nothing_ND = Rows((new_MD.new_zeros(1, new_MD.shape[1]),), torch.zeros(num_rows, dtype=torch.int64))
    return nothing_ND.replaced(items_M, new_MD)


def own_items(storage: Storage, version: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The bundle's `items`, or some columns of them."""
    return read_table(Workspace(Workspace(storage).bundles.at(version)).items, columns=columns)


def prepared_items(storage: Storage) -> pa.Table:
    """The items that are prepared now: ids by index, availability, categories and interactions, and no words."""
    columns = ["item_index", "item_id", "categories", "available", "popularity", "interactions"]
    return in_order(read_table(Workspace(storage).items, columns=columns))


def current_items(storage: Storage, version: str) -> pa.Table:
    """The bundle's `items`, with availability, categories and interactions as they are prepared now."""
    return with_counts(own_items(storage, version), prepared_items(storage))


def renumbering(storage: Storage, version: str) -> np.ndarray:
    """The bundle's index of each item that is prepared now: int64 (I,); 0 where the bundle does not have the item."""
    prepared = in_order(read_table(Workspace(storage).items, columns=["item_index", "item_id"]))
    return indices_in(prepared.column("item_id"), own_items(storage, version, ["item_id"]))


def new_since_training(storage: Storage, version: str) -> np.ndarray:
    """bool (N,): the bundle's items that its models were not trained on; padding is none of them."""
    trained = read_trained_items(Workspace(Workspace(storage).bundles.at(version)).teacher, ["item_id"])
    rows_N = indices_in(own_items(storage, version, ["item_id"]).column("item_id"), trained)
    return np.append(False, rows_N[1:] == 0)


def _embeddings(texts: Storage, items: pa.Table, indices: np.ndarray) -> Iterator[torch.Tensor]:
    """Q of some items, (R, S) from each shard that has some; ascending, as the indices are."""
    manifest, first = read_manifest(texts), 1
    for name, entry in manifest.files.items():  # in the order of item_index
        inside = indices[slice(*np.searchsorted(indices, (first, first + entry["rows"])))]
        if len(inside):
            table = read_part(texts, manifest, name).take(pa.array(inside - first))
            keys = [(table.column(key), take(items.column(key), inside - 1)) for key in ("item_id", "text_hash")]
            if not all(found.equals(wanted) for found, wanted in keys):
                break
            yield to_tensor(table.column("embedding"))
        first += entry["rows"]
    if first <= indices.max():
        raise ValueError(f"{texts.uri} does not hold the texts of the items that are prepared; run embed first")
