"""Tables with a row an item, of which a process holds what it asks for: large ones are mapped, and shared by a machine.

A mapped table is in the machine's page cache once, however many processes have it, and the system takes its pages
back when it needs the room. `Rows` says which rows of which tables another table consists of, without copying any:
items are numbered again, new ones are added, and e_i or q_i chosen, by indices alone. `shared` is for what must be one
tensor: of several files or tables it makes one file in the machine's cache, once; `by_rows` for what a process computes
of all rows, and `GrowingTable` for rows that come some at a time. Smaller tables than MAPPED_BYTES are private copies.
What is written into a mapped tensor stays with the process, and pages that it writes are its own.

Knows nothing about what the rows mean; which files may be mapped is the business of `tensor_files`.

Dimensions: N rows, K of them, D numbers of a row
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch

from allmrec.core import machine_cache
from allmrec.core.machine_cache import machine_file

MAPPED_BYTES = 64 << 20  # of a table; a smaller one is not worth a mapping
_BLOCK_BYTES = 1 << 20  # copied at once
_ROWS = 1 << 14  # of a part, at least


def is_large(nbytes: int) -> bool:
    """Whether a table or a file of this size is mapped."""
    return nbytes >= MAPPED_BYTES


@dataclass(frozen=True)
class Rows:
    """A table (N, D) whose rows are those of other tables; indexing copies rows."""

    parts: tuple[torch.Tensor, ...]  # (·, D) each, on one device
    at_N: torch.Tensor | None = None  # int64, places in the parts one behind the other; None: all, as they are

    @classmethod
    def of(cls, table: "Table") -> "Rows":
        return table if isinstance(table, Rows) else cls((table,))

    def __len__(self) -> int:
        return self._total if self.at_N is None else len(self.at_N)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self), *self.parts[0].shape[1:]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.parts[0].element_size()

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Copies of the rows at some indices, (*index.shape, D). Raises IndexError."""
        index = torch.as_tensor(index)
        assert index.dtype != torch.bool, "rows are asked for by their numbers"
        index = index.long()
        at_K = (index if self.at_N is None else self.at_N[index]).flatten()
        if len(self.parts) == 1:
            return self.parts[0][at_K].view(*index.shape, *self.shape[1:])
        if len(at_K) and not 0 <= int(at_K.min()) <= int(at_K.max()) < self._total:
            raise IndexError(f"rows are numbered from 0 to {self._total - 1}")
        found_KD, first = self.parts[0].new_empty(len(at_K), *self.shape[1:]), 0
        for part in self.parts:
            here = ((at_K >= first) & (at_K < first + len(part))).nonzero()[:, 0]
            found_KD[here] = part[at_K[here] - first]
            first += len(part)
        return found_KD.view(*index.shape, *self.shape[1:])

    def take(self, rows_N: torch.Tensor) -> "Rows":
        """Rows in another order. Raises IndexError where there is none of that number."""
        if len(rows_N) == len(self) and torch.equal(rows_N, torch.arange(len(self))):
            return self
        return Rows(self.parts, self._at_N[rows_N])

    def replaced(self, index_K: torch.Tensor, rows_KD: torch.Tensor) -> "Rows":
        """With other rows at some indices."""
        if not len(index_K):
            return self
        at_N = self._at_N.clone()
        at_N[index_K] = self._total + torch.arange(len(index_K))
        return Rows((*self.parts, rows_KD), at_N)

    def where(self, mask_N: torch.Tensor, others: "Table") -> "Rows":
        """These rows where the mask is True, and the others elsewhere."""
        others = Rows.of(others)
        return Rows(self.parts + others.parts, torch.where(mask_N, self._at_N, self._total + others._at_N))

    def blocks(self) -> Iterator[torch.Tensor]:
        """All rows, some at a time."""
        for at_K in torch.arange(len(self)).split(max(1, _BLOCK_BYTES * len(self) // max(self.nbytes, 1))):
            yield self[at_K]

    def to(self, device: torch.device | str) -> "Table":
        """On another device than the CPU it is whole."""
        if torch.device(device).type == "cpu":
            return self
        return torch.cat([block.to(device) for block in self.blocks()])

    @property
    def _total(self) -> int:
        return sum(map(len, self.parts))

    @property
    def _at_N(self) -> torch.Tensor:
        return torch.arange(self._total) if self.at_N is None else self.at_N


Table = torch.Tensor | Rows


def whole(table: Table) -> torch.Tensor:
    """All rows, for mathematics over all of them; a copy where they are of several tables."""
    if isinstance(table, torch.Tensor):
        return table
    return table.parts[0] if len(table.parts) == 1 and table.at_N is None else table[torch.arange(len(table))]


def shared(rows: Rows) -> torch.Tensor:
    """The whole table, as one tensor; a large one is a file that all processes of the machine map.

    Raises:
        ValueError: the machine's file is damaged.
    """
    if not is_large(rows.nbytes):
        return rows[torch.arange(len(rows))]
    return rows.parts[0] if len(rows.parts) == 1 and rows.at_N is None else from_blocks(rows.blocks)


def in_parts(table: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All rows, in parts of which none is small: products of a few rows are rounded otherwise."""
    return table.tensor_split([*range(_ROWS, len(table) - _ROWS + 1, _ROWS)])


def by_rows(function: Callable[[torch.Tensor], torch.Tensor], table: torch.Tensor) -> torch.Tensor:
    """What a function makes of every row, (N, ·); it is called with a part of them at a time. There is one.

    A large result is a file that goes with the tensor: the process holds none of it, and others do not see it.
    """
    found, first = table, 0
    for part in in_parts(table):
        made = function(part)
        if not first:
            found = _empty(made, len(table))
        found[first : first + len(made)] = made
        first += len(made)
    return found


def from_blocks(blocks: Callable[[], Iterable[torch.Tensor]]) -> torch.Tensor:
    """A table as a file that all processes of the machine map.

    Args:
        blocks: its rows, some at a time; there is one. Asked for once to know what they are, and once more by the
            process that writes the file.

    Raises:
        ValueError: the machine's file is damaged.
    """
    digest, count, shape, dtype = hashlib.sha256(), 0, torch.Size(), torch.float32
    for block in blocks():
        digest.update(_bytes(block))
        count, shape, dtype = count + len(block), block.shape[1:], block.dtype

    def fill(path: Path) -> None:
        with path.open("wb") as file:
            for block in blocks():
                file.write(_bytes(block))
            file.flush()
            os.fsync(file.fileno())

    path = machine_file(digest.hexdigest(), fill)
    return torch.from_file(str(path), shared=False, size=count * shape.numel(), dtype=dtype).view(count, *shape)


class GrowingTable:
    """A table whose rows come some at a time, and once: a file that goes with the tensor, which others do not see."""

    def __init__(self) -> None:
        self._file, self._rows, self._like = NamedTemporaryFile(dir=_cache_folder()), 0, torch.zeros(0)  # noqa: SIM115

    def append(self, rows_KD: torch.Tensor) -> None:
        self._file.write(_bytes(rows_KD))
        self._rows, self._like = self._rows + len(rows_KD), rows_KD[:0].clone()

    def table(self) -> torch.Tensor:
        """All rows, (N, ·); nothing can be appended any more."""
        with self._file as file:
            file.flush()
            shape = self._rows, *self._like.shape[1:]
            if not math.prod(shape):
                return self._like.new_empty(shape)
            rows = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=self._like.dtype)
            return rows.view(shape)


def _empty(like: torch.Tensor, num_rows: int) -> torch.Tensor:
    """A table of rows as these, to be filled."""
    count = num_rows * like.shape[1:].numel()
    nbytes = count * like.element_size()
    if like.device.type != "cpu" or not is_large(nbytes):
        return like.new_empty(num_rows, *like.shape[1:])
    with NamedTemporaryFile(dir=_cache_folder()) as file:
        os.posix_fallocate(file.fileno(), 0, nbytes)  # a full disk is told here, and not by a signal later
        return torch.from_file(file.name, shared=True, size=count, dtype=like.dtype).view(num_rows, *like.shape[1:])


def _cache_folder() -> Path:
    folder = machine_cache.CACHE.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _bytes(block: torch.Tensor) -> Any:
    # A single value may have any stride, and `view` wants 1.
    return block.contiguous().as_strided((block.numel(),), (1,)).view(torch.uint8).numpy().data
