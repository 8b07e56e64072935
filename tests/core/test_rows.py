"""Tables that are mapped and shared: rows are those of plain tensors, and a process holds what it asks for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from allmrec.core import file_digests, machine_cache, rows
from allmrec.core.artifacts import writing
from allmrec.core.rows import GrowingTable, Rows, by_rows, in_parts, shared, whole
from allmrec.core.storage import LocalStorage
from allmrec.core.tensor_files import read_tensors, write_tensors
from tests.own_process import private_mb

NAME, NUM, DIM = "e.safetensors", 40_000, 768  # 123 MB


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine_cache, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(file_digests, "_CACHE", tmp_path / "digests.json")
    return tmp_path / "cache"


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table is."""
    monkeypatch.setattr(rows, "MAPPED_BYTES", 1)


@pytest.mark.parametrize("shape", [(0,), (7,), (5, 3)])
def test_a_table_grows_by_blocks_and_its_file_goes_with_it(cache: Path, shape: tuple[int, ...]) -> None:
    rows_ND, growing = torch.randint(100, shape, dtype=torch.int32), GrowingTable()
    for block in rows_ND.split(2):
        growing.append(block)
    table_ND = growing.table()
    assert torch.equal(table_ND, rows_ND) and table_ND.dtype == torch.int32
    assert not [*cache.iterdir()]


def test_a_single_value_may_have_any_stride(cache: Path) -> None:
    growing = GrowingTable()
    growing.append(torch.as_strided(torch.tensor([7, 8], dtype=torch.int32), (1,), (0,)))
    assert growing.table().tolist() == [7]


def test_rows_are_those_of_the_tables_that_they_come_from() -> None:
    e_NJ, q_NJ, new_MJ = torch.randn(6, 3), torch.randn(6, 3), torch.randn(2, 3)
    numbers, mask_N = torch.tensor([0, 4, 0, 1, 5]), torch.tensor([True, False, True, False, True])
    taken_NJ, expected_NJ = Rows.of(q_NJ).take(numbers), q_NJ[numbers]
    taken_NJ, expected_NJ = taken_NJ.replaced(torch.tensor([2, 4]), new_MJ), expected_NJ.clone()
    expected_NJ[[2, 4]] = new_MJ
    assert torch.equal(whole(taken_NJ), expected_NJ) and taken_NJ.shape == expected_NJ.shape
    chosen_NJ = taken_NJ.where(mask_N, Rows.of(e_NJ).take(numbers))
    expected_NJ = torch.where(mask_N[:, None], expected_NJ, e_NJ[numbers])
    assert torch.equal(whole(chosen_NJ), expected_NJ) and torch.equal(torch.cat([*chosen_NJ.blocks()]), expected_NJ)
    index = np.array([[3, 1], [3, 0]])
    assert torch.equal(chosen_NJ[index], expected_NJ[index]) and torch.equal(chosen_NJ[2], expected_NJ[2])
    assert torch.equal(shared(chosen_NJ), expected_NJ)
    assert whole(Rows.of(e_NJ).take(torch.arange(6))) is e_NJ, "nothing is copied for nothing"
    for wrong in (
        lambda: Rows.of(e_NJ).take(torch.tensor([6])),
        lambda: chosen_NJ[[5]],
        lambda: Rows((e_NJ, q_NJ))[12],
    ):
        with pytest.raises(IndexError):
            wrong()


def test_processes_share_one_file_and_keep_what_they_write_to_themselves(cache: Path, large: None) -> None:
    table_ND = torch.randn(50, 3)
    mixed = Rows.of(table_ND).take(torch.arange(49, -1, -1))
    first_ND, second_ND = shared(mixed), shared(mixed)
    assert torch.equal(first_ND, table_ND.flip(0)) and len([*(cache / machine_cache.TABLES).glob("*/data")]) == 1
    first_ND[7] = 0
    assert torch.equal(second_ND, table_ND.flip(0)) and torch.equal(shared(mixed), second_ND)
    assert first_ND.data_ptr() % 64 == 0, "as torch aligns its own"


def test_what_is_computed_of_all_rows_is_the_same_in_parts_and_in_a_file(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table_ND, layer = torch.randn(3 * rows._ROWS - 1, 6), torch.nn.Linear(6, 8)
    assert [len(part) for part in in_parts(table_ND)] == [rows._ROWS, 2 * rows._ROWS - 1], "none is small"
    with torch.no_grad():
        expected_NJ = layer(table_ND)
        assert torch.equal(by_rows(layer, table_ND), expected_NJ)
        monkeypatch.setattr(rows, "MAPPED_BYTES", 1)
        found_NJ = by_rows(layer, table_ND)
    found_NJ[0] = 0
    assert torch.equal(found_NJ[1:], expected_NJ[1:]) and not found_NJ[0].any()
    assert not [*cache.iterdir()], "the file goes with the tensor"


def test_a_damaged_file_of_the_machine_is_refused(cache: Path, large: None) -> None:
    mixed = Rows.of(torch.randn(50, 3)).take(torch.arange(49, -1, -1))
    shared(mixed)
    (file,) = (cache / machine_cache.TABLES).glob("*/data")
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"data is damaged.*delete the folder"):
        shared(mixed)


def test_a_process_holds_the_rows_that_it_asks_for(cache: Path, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    with writing(storage, "table", "step") as out:
        out.add(write_tensors(storage, NAME, {"e": torch.zeros(NUM, DIM)}))
    assert private_mb(_some_rows, tmp_path / "store", cache) < 20
    assert private_mb(_all_rows, tmp_path / "store", cache) < 20


def _some_rows(folder: Path, cache: Path) -> list[torch.Tensor]:
    machine_cache.CACHE, file_digests._CACHE = cache, cache / "digests.json"
    e_NJ = read_tensors(LocalStorage(folder), NAME)["e"]
    mixed = Rows.of(e_NJ).take(torch.arange(NUM - 1, -1, -1)).replaced(torch.tensor([3]), torch.ones(1, DIM))
    return [e_NJ, shared(mixed), mixed[torch.arange(1000)], e_NJ.any(1)]


def _all_rows(folder: Path, cache: Path) -> list[torch.Tensor]:
    machine_cache.CACHE, file_digests._CACHE = cache, cache / "digests.json"
    e_NJ = read_tensors(LocalStorage(folder), NAME)["e"]
    return [by_rows(lambda rows_KJ: rows_KJ + 1, e_NJ)]
