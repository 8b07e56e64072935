"""An external teacher: any layout of two tables gives the same one, and what is wrong with them is said in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.cf.external import ExternalTeacher, import_teacher, open_tables, table_files
from allmrec.cf.retrieval import catalogue_ranks, retrieve
from allmrec.cf.teacher import TeacherConfig, load_teacher, save_teacher
from allmrec.core.artifacts import writing
from allmrec.core.hashing import hash_strings
from allmrec.core.storage import S3Config, open_storage
from allmrec.data.sequences import Sequences
from allmrec.data.sources import readers
from tests.cf.conftest import ragged

CATALOGUE = pa.chunked_array([["a", "b"], ["c", "d"]])  # of items 1 to 4
LOG = ragged([[1, 2], [3], [4]])  # user-0, user-1, user-2
ITEMS = {"c": [1.0, 2.0], "elsewhere": [9.0, 9.0], "a": [0.5, -1.0], "d": [-1.0, 0.25]}
USERS = {"user-2": [1.0, 0.0], "stranger": [7.0, 7.0], "user-0": [-2.0, 3.0]}


def write(
    path: Path, ids: list[Any], vectors: list[Any], key: str = "item_id", kind: Any = None, **options: Any
) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    embedding = pa.array(vectors, kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({key: pa.array(ids), "embedding": embedding}), path, **options)
    return str(path)


def imported(items: Any, users: Any, s3: S3Config | None = None) -> tuple[ExternalTeacher, dict[str, Any]]:
    config = TeacherConfig(model="external", item_embeddings=items, user_representations=users)
    return import_teacher(*open_tables(config, s3 or S3Config()), CATALOGUE, LOG)


@pytest.fixture
def items(tmp_path: Path) -> str:
    return write(tmp_path / "items.parquet", list(ITEMS), list(ITEMS.values()))


@pytest.fixture
def users(tmp_path: Path) -> str:
    return write(tmp_path / "users.parquet", list(USERS), list(USERS.values()), "user_id")


def test_two_tables_become_a_teacher(items: str, users: str):
    teacher, stats = imported(items, users)
    assert teacher.item_embeddings.tolist() == [[0, 0], [0.5, -1], [0, 0], [1, 2], [-1, 0.25]]
    assert teacher.represent(LOG).tolist() == [[-2, 3], [0, 0], [1, 0]]
    assert stats == {
        "num_items": 4,
        "dim": 2,
        "items_without_embedding": 1,
        "embeddings_of_unknown_items": 1,
        "users": 3,
        "users_without_representation": 1,
    }


def test_the_layout_of_the_tables_does_not_matter(tmp_path: Path, items: str, users: str, monkeypatch):
    expected = imported(items, users)[0].state_dict()
    monkeypatch.setattr(readers, "ROWS", 2)
    fixed, doubles, large = pa.list_(pa.float32(), 2), pa.list_(pa.float64()), pa.large_list(pa.float16())
    write(tmp_path / "many" / "part-1.parquet", list(ITEMS)[:3], list(ITEMS.values())[:3], kind=fixed, row_group_size=1)
    write(tmp_path / "many" / "part-2.parquet", list(ITEMS)[3:], list(ITEMS.values())[3:], kind=doubles)
    write(tmp_path / "many" / "other.parquet", ["a"], [[5.0]])
    ids, vectors = pa.array(list(USERS)[::-1]).dictionary_encode(), list(USERS.values())[::-1]
    write(tmp_path / "u.parquet", ids, vectors, "who", large, row_group_size=2)
    mapped = {"paths": [str(tmp_path / "u.parquet")], "columns": {"user_id": "who"}}
    teacher, _ = imported(str(tmp_path / "many" / "part-*.parquet"), mapped)
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_globs_mean_files_on_a_disk_and_on_s3(
    tmp_path: Path, items: str, users: str, s3: S3Config, s3_uri: str, monkeypatch
):
    store = open_storage(s3_uri, s3)
    for name, path in (("items/part-0.parquet", items), ("items/junk.parquet", users), ("users.parquet", users)):
        store.write(name, Path(path).read_bytes())
    teacher, _ = imported([f"{s3_uri}/items/part-*.parquet"], f"{s3_uri}/users.parquet", s3)
    monkeypatch.chdir(tmp_path)
    config = TeacherConfig(model="external", item_embeddings="it*", user_representations=["users.parquet"])
    files = table_files(config, S3Config())
    assert [file.uri for file in files["item_embeddings"]] == ["items.parquet"]
    assert torch.equal(teacher.items, imported("it*", "users.parquet")[0].items)


@settings(max_examples=30, deadline=None)
@given(known=st.sets(st.integers(0, 60), min_size=1), requested=st.lists(st.integers(0, 60)))
def test_users_are_found_by_id_whatever_their_history(known: set[int], requested: list[int]):
    hashes = hash_strings(pa.array([f"u{user}" for user in known])).view(np.int64)
    order = hashes.argsort()
    x_UD = torch.tensor(list(known)).float()[:, None] + 1
    teacher = ExternalTeacher(torch.zeros(2, 1), x_UD[order], torch.from_numpy(hashes[order]))
    ids = pa.array([f"u{user}" for user in requested], pa.string())
    histories = Sequences(ids, np.zeros(len(ids) + 1, np.int64), np.zeros(0, np.int32))
    assert teacher.represent(histories).tolist() == [[user + 1.0 if user in known else 0.0] for user in requested]


def test_items_without_an_embedding_come_last(items: str, users: str):
    teacher, _ = imported(items, users)
    x_UD = -teacher.represent(LOG)[[2]]  # every product but one is negative
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    best, scores = retrieve(teacher, x_UD, nothing, torch.tensor([False, True, True, True, True]), 4)
    assert best.tolist() == [[4, 1, 3, 2]] and scores.isfinite().all()
    in_order = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(teacher.scores(x_UD, in_order), teacher.shared_scores(x_UD)[:, 1:])
    assert teacher.scores(x_UD, in_order).argsort(descending=True).tolist() == [[3, 0, 2, 1]]
    better, tied = catalogue_ranks(teacher, x_UD, torch.tensor([2]), nothing)
    assert (better.item(), tied.item()) == (3, 0)


def test_it_survives_the_disk(items: str, users: str, tmp_path: Path):
    teacher, stats = imported(items, users)
    storage = open_storage(str(tmp_path / "teacher"))
    config = TeacherConfig(model="external", item_embeddings=items, user_representations=users)
    settings = {"teacher": config.model_dump(mode="json")}
    with writing(storage, "teacher", "test", settings) as out:
        out.add(save_teacher(storage, teacher))
        out.stats |= stats
    loaded = load_teacher(storage)
    assert not loaded.training and torch.equal(loaded.represent(LOG), teacher.represent(LOG))
    assert torch.equal(loaded.shared_scores(teacher.users), teacher.shared_scores(teacher.users))


def test_wrong_tables_are_refused_in_one_line(tmp_path: Path, items: str, users: str):
    def table(name: str, ids: list[Any], vectors: list[Any], key: str = "item_id", kind: Any = None) -> str:
        return write(tmp_path / f"{name}.parquet", ids, vectors, key, kind)

    whole = [1.0, 2.0]
    not_finite = "holds NaN, inf or null; fix it or leave that row out"
    doubles = pa.list_(pa.float64())
    for message, items_uri, users_uri in (
        ("item_embeddings: no such path", str(tmp_path / "absent.parquet"), users),
        (r"item_embeddings: no such path: .*absent-\*", str(tmp_path / "absent-*.parquet"), users),
        ("column 'user_id' is missing in .*; name the right one in teacher.user_representations.columns", items, items),
        (
            "column 'embedding' is list<.*int64> in .*; it must be a list of floats",
            table("int", ["a"], [[1]], kind=pa.list_(pa.int64())),
            users,
        ),
        (
            "item_embeddings: the embedding of item_id 'b' has not the 2 dimensions",
            table("ragged", ["a", "b"], [whole, [1.0]]),
            users,
        ),
        ("item_embeddings: the embedding of item_id 'b' is empty", table("empty", ["a", "b"], [whole, []]), users),
        ("item_embeddings has 1 dimensions and user_representations 2", table("narrow", ["a"], [[1.0]]), users),
        (f"item_id 'b' {not_finite}", table("nan", ["a", "b"], [whole, [np.nan, 1]]), users),
        (f"item_id 'b' {not_finite}", table("inf", ["a", "b"], [whole, [1, -np.inf]]), users),
        (f"item_id 'a' {not_finite}", table("huge", ["a", "b"], [[1, 1e300], whole], kind=doubles), users),
        (f"user_id 'user-0' {not_finite}", items, table("hole", ["x", "user-0"], [whole, [None, 1.0]], "user_id")),
        ("item_id 'b' is null; leave that row out", table("null", ["a", "b"], [whole, None]), users),
        (
            "user_representations: 1 rows have no user_id",
            items,
            table("noid", ["user-0", None], [whole, whole], "user_id"),
        ),
        ("item_embeddings: item_id 'b' occurs twice", table("twice", ["b", "a", "b"], [whole] * 3), users),
        (
            "user_id 'stranger' occurs twice",
            items,
            table("again", ["stranger", "user-0", "stranger"], [whole] * 3, "user_id"),
        ),
        ("no item_id is in the catalogue: .*'z'.*'a'.*columns.item_id", table("strange", ["z"], [whole]), users),
        (
            "no user_id is in the log: .*'z'.*'user-0'.*columns.user_id",
            items,
            table("unmatched", ["z"], [whole], "user_id"),
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            imported(items_uri, users_uri)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "external"}, "model external needs item_embeddings"),
        ({"model": "external", "item_embeddings": "i", "user_representations": {}}, "needs user_representations"),
        ({"item_embeddings": "i"}, "item_embeddings is read by model external alone"),
        ({"model": "external", "item_embeddings": {"paths": ["i"], "format": "jsonl"}}, "write the table as Parquet"),
        ({"model": "external", "item_embeddings": {"paths": ["i"], "columns": {"id": "x"}}}, "unknown column 'id'"),
    ],
)
def test_the_config_says_what_it_lacks(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        TeacherConfig(**settings)
