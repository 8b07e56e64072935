"""An external teacher: item embeddings and user representations of any other system, brought in from two tables.

Knows how the tables are read, what is wrong with them, and how they become a `Teacher`; how the vectors were trained
is their maker's business. docs/teachers.md says what the maker owes to an honest evaluation.

Dimensions: B users, C candidates, K items shared by all rows, U users of the table, R rows of a table, N = n + 1 items
(0 is padding), D of a vector
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from allmrec.cf.teacher import Teacher, TeacherConfig, save_teacher
from allmrec.cf.training import ValidationCases, validate
from allmrec.core.artifacts import read_table, writing
from allmrec.core.hashing import hash_strings
from allmrec.core.rows import Rows, Table, shared
from allmrec.core.storage import S3Config, Storage
from allmrec.core.workspace import Workspace
from allmrec.data.catalogue import in_order, read_drawable
from allmrec.data.prepare.clean import is_id
from allmrec.data.sequences import Sequences
from allmrec.data.sources.source import Column, InputFile, Source, find_files, open_source
from allmrec.data.trained_items import write_trained_items

TABLES = {"item_embeddings": "item_id", "user_representations": "user_id"}  # table → the column of its ids
LOWEST = torch.finfo(torch.float32).min  # finite, for a published score must be


class ExternalTeacher(Teacher):
    """Looks a user up by the id, whatever the history; an item's score is its dot product with x^u.

    A user that it does not know has zeros, as an empty history has with the other teachers. An item that it does not
    know has zeros too and scores LOWEST with everyone: below all others, also where their products are negative.
    """

    items: torch.Tensor
    users: torch.Tensor
    hashes: torch.Tensor
    unknown: torch.Tensor

    def __init__(self, items: torch.Tensor, users: torch.Tensor, hashes: torch.Tensor):
        """
        Args:
            items: E, float32 (N, D); zeros where there is none.
            users: x, float32 (U, D).
            hashes: int64 (U,), ascending: the bits of `hash_strings` of the users' ids.
        """
        super().__init__()
        self.register_buffer("items", items)
        self.register_buffer("users", users)
        self.register_buffer("hashes", hashes)
        self.register_buffer("unknown", ~items.any(dim=1), persistent=False)

    @property
    def item_embeddings(self) -> torch.Tensor:
        return self.items

    def take_items(self, rows_N: torch.Tensor, new_ND: Table) -> None:
        self.items = shared(Rows.of(new_ND).where(rows_N == 0, Rows.of(self.items).take(rows_N)))
        self.unknown = ~self.items.any(dim=1)

    @torch.inference_mode()
    def represent(self, histories: Sequences) -> torch.Tensor:
        row, known = self.find(histories)
        return self.users[row] * known[:, None]

    def find(self, users: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of `self.users`, int64, and whether they are of these users, bool."""
        wanted = torch.from_numpy(users.hashes().view(np.int64)).to(self.hashes.device)
        row = torch.searchsorted(self.hashes, wanted).clamp(max=len(self.hashes) - 1)
        return row, self.hashes[row] == wanted

    def scores(self, x_BD: torch.Tensor, items_BC: torch.Tensor) -> torch.Tensor:
        return super().scores(x_BD, items_BC).masked_fill(self.unknown[items_BC], LOWEST)

    def shared_scores(self, x_BD: torch.Tensor, items_K: torch.Tensor | None = None) -> torch.Tensor:
        unknown = self.unknown if items_K is None else self.unknown[items_K]
        return super().shared_scores(x_BD, items_K).masked_fill(unknown, LOWEST)


@dataclass(frozen=True)
class ImportTeacher:
    """The two tables → the artifact `teacher`, by one task, which holds both in memory; returns their numbers."""

    item_embeddings: Source
    user_representations: Source
    sequences: Storage
    items: Storage
    cases: Storage
    teacher: Storage
    config: TeacherConfig
    seed: int
    fingerprint: str  # of the artifact
    resolved: dict[str, Any]  # its config

    def __call__(self) -> dict[str, Any]:
        items = in_order(read_table(self.items, columns=["item_index", "item_id"]))
        teacher, stats = import_teacher(
            self.item_embeddings, self.user_representations, items.column("item_id"), Sequences.read(self.sequences)
        )
        cases = ValidationCases.read(self.cases, self.sequences, self.config.validation_users, self.seed)
        stats |= validate(teacher, cases, self.config.validation, read_drawable(self.items))
        with writing(self.teacher, Workspace.teacher, self.fingerprint, self.resolved) as out:
            out.add(save_teacher(self.teacher, teacher) | write_trained_items(self.teacher, self.items))
            out.stats |= stats
        return stats


def import_teacher(
    item_embeddings: Source, user_representations: Source, item_ids: pa.ChunkedArray, sequences: Sequences
) -> tuple[ExternalTeacher, dict[str, Any]]:
    """The teacher that two tables make, and how well they fit.

    Args:
        item_ids: of the catalogue, by item index from 1. Rows of other items are left out.
        sequences: everyone's, to count the users that the teacher knows. Rows of other users are kept: they may come.

    Raises:
        ValueError: a null, a vector that is not finite or of other dimensions, an id twice, or not one id in common.
    """
    known_ids, items_RD, _ = read_vectors(item_embeddings)
    user_ids, users_UD, hashes = read_vectors(user_representations)
    if items_RD.shape[1] != users_UD.shape[1]:
        raise ValueError(
            f"item_embeddings has {items_RD.shape[1]} dimensions and user_representations {users_UD.shape[1]}; name "
            "two tables of one model, whose score is their dot product"
        )
    row = pc.index_in(item_ids.cast(pa.large_string()), value_set=known_ids)
    known = np.concatenate([[False], row.is_valid().to_numpy()])
    _refuse_strangers(item_embeddings, known_ids, known, "the catalogue", item_ids)
    items_ND = np.zeros((len(known), items_RD.shape[1]), dtype=np.float32)
    items_ND[known] = items_RD[row.drop_null().to_numpy()]

    order = hashes.argsort()
    teacher = ExternalTeacher(*map(torch.from_numpy, (items_ND, users_UD[order], hashes[order])))
    found = teacher.find(sequences)[1].numpy()
    _refuse_strangers(user_representations, user_ids, found, "the log", sequences.user_ids)
    return teacher.eval(), {
        "num_items": len(item_ids),
        "dim": items_RD.shape[1],
        "items_without_embedding": int(teacher.unknown[1:].sum()),
        "embeddings_of_unknown_items": len(known_ids) - int(known.sum()),
        "users": len(user_ids),
        "users_without_representation": len(found) - int(found.sum()),
    }


def open_tables(config: TeacherConfig, s3: S3Config) -> tuple[Source, Source]:
    """The two tables, their columns checked, their rows not read. Raises ValueError for what is wrong with them."""
    items, users = (
        open_source(
            name,
            getattr(config, name),
            s3,
            {ids: Column(True, is_id, "text or an integer"), "embedding": Column(True, _is_vector, "a list of floats")},
            f"teacher.{name}",
        )
        for name, ids in TABLES.items()
    )
    return items, users


def table_files(config: TeacherConfig, s3: S3Config) -> dict[str, list[InputFile]]:
    """The files of each table. Raises ValueError where there are none."""
    return {name: find_files(name, getattr(config, name), s3) for name in TABLES}


def read_vectors(source: Source) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
    """A whole table: ids, large_string (R,); vectors, float32 (R, D); hashes of the ids, int64 (R,)."""
    assert source.rows is not None, "Parquet files say how many rows they have"
    key = source.fields.names[0]
    chunks: list[pa.Array] = []
    vectors_RD, first = np.empty((0, 0), np.float32), 0
    for piece in source.pieces:
        for table in source.read(piece):
            ids = table.column(key).cast(pa.large_string()).combine_chunks()
            rows_BD = _matrix(source.name, key, ids, table.column("embedding"), vectors_RD.shape[1])
            if not chunks:  # the first rows say how wide all are
                vectors_RD = np.empty((source.rows, rows_BD.shape[1]), np.float32)
            vectors_RD[first : first + len(ids)] = rows_BD
            first += len(ids)
            chunks.append(ids)
    ids = pa.chunked_array(chunks, pa.large_string())
    hashes = hash_strings(ids).view(np.int64)
    order = hashes.argsort(kind="stable")
    again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    if len(again):
        one = ids[int(order[again[0]])].as_py()
        raise ValueError(f"{source.name}: {key} {one!r} occurs twice ({len(again):,} such rows); keep one row of each")
    return ids, vectors_RD, hashes


def _matrix(name: str, key: str, ids: pa.Array, column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """Some rows' embeddings, float32 (R, D), where D is `dim` if that is known (not 0)."""
    if ids.null_count:
        raise ValueError(f"{name}: {ids.null_count:,} rows have no {key}; leave them out")
    lists = pa.concat_arrays([pa.array([], column.type), *column.chunks])

    def refuse(wrong: np.ndarray, what: str) -> None:
        if wrong.any():
            raise ValueError(f"{name}: the embedding of {key} {ids[int(wrong.argmax())].as_py()!r} {what}")

    refuse(lists.is_null().to_numpy(zero_copy_only=False), "is null; leave that row out")
    lengths = pc.list_value_length(lists).to_numpy()
    refuse(lengths == 0, "is empty; leave that row out")
    dim = dim or int(lengths[0])
    refuse(lengths != dim, f"has not the {dim} dimensions of those before it; all must have the same number")
    flat = lists.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)  # a null comes out as NaN
    rows_RD = flat.reshape(len(lists), dim)
    refuse(~np.isfinite(rows_RD).all(axis=1), "holds NaN, inf or null; fix it or leave that row out")
    return rows_RD


def _refuse_strangers(source: Source, ids: pa.ChunkedArray, found: np.ndarray, where: str, others: Any) -> None:
    if not found.any():
        key, here, there = source.fields.names[0], ids[0].as_py(), others[0].as_py()
        raise ValueError(
            f"{source.name}: no {key} is in {where}: the table has {here!r} …, {where} has {there!r} …; name the "
            f"column of those ids in teacher.{source.name}.columns.{key}"
        )


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return lists and pa.types.is_floating(kind.value_type)
