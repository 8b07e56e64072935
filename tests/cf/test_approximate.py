"""The index finds nearly what exact retrieval does, nothing seen or unavailable, and says when it cannot be had."""

import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allmrec.cf.approximate import ApproximateIndex, ItemLists
from allmrec.cf.external import ExternalTeacher
from allmrec.cf.retrieval import retrieve
from allmrec.cf.teacher import TeacherConfig, build_teacher
from tests.cf.test_retrieval import Lookup, drawn_pairs


def clustered(num_items: int, num_users: int, dim: int = 16, seed: int = 0) -> tuple[Lookup, torch.Tensor]:
    """Items about 50 centres, of norms that differ, and users about the same centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(50, dim, generator=generator)

    def around(count: int) -> torch.Tensor:
        at = torch.randint(0, 50, (count,), generator=generator)
        norms = 0.5 + torch.rand(count, 1, generator=generator)
        return (centres[at] + 0.3 * torch.randn(count, dim, generator=generator)) * norms

    teacher = Lookup(num_items, seed)
    teacher.table = torch.cat([torch.zeros(1, dim), around(num_items)])
    return teacher, around(num_users)


def indexed(teacher: Lookup, available_I: torch.Tensor, seed: int) -> ApproximateIndex:
    return ApproximateIndex(teacher, available_I, ItemLists.of(teacher, available_I, seed))


def everything(num_items: int) -> torch.Tensor:
    available = torch.ones(num_items + 1, dtype=torch.bool)
    available[0] = False
    return available


def test_it_finds_nearly_all():
    teacher, x = clustered(20_000, 300)
    _, pairs = drawn_pairs(np.random.default_rng(0), 300, 20_000)
    available = everything(20_000)
    index = indexed(teacher, available, seed=0)
    assert index.index.nprobe < index.index.nlist / 5, "it looks at a part of the catalogue"
    found, scores = index.retrieve(x, pairs, 20)
    exact, exact_scores = retrieve(teacher, x, pairs, available, 20)
    recall = np.mean([len({*mine} & {*best}) / 20 for mine, best in zip(found.tolist(), exact.tolist(), strict=True)])
    assert recall > 0.97
    assert (scores <= exact_scores + 1e-4).all(), "its scores are the teacher's"


@settings(max_examples=40, deadline=None)
@given(
    num_items=st.integers(2, 12) | st.integers(100, 300),
    num_users=st.integers(0, 9),
    count=st.integers(1, 15) | st.integers(60, 350),
    seed=st.integers(0, 10_000),
)
def test_in_a_small_catalogue_it_looks_into_every_list_and_is_exact(num_items, num_users, count, seed):
    """Whatever is seen and unavailable, and however few are left; with no ties, for the index has no order for them."""
    rng = np.random.default_rng(seed)
    teacher, x = clustered(num_items, num_users, seed=seed)
    _, pairs = drawn_pairs(rng, num_users, num_items)
    available = everything(num_items) & torch.from_numpy(rng.random(num_items + 1) < 0.8)
    available[1] = True
    found, scores = indexed(teacher, available, seed).retrieve(x, pairs, count)
    exact, exact_scores = retrieve(teacher, x, pairs, available, count)
    assert found.tolist() == exact.tolist() and found.dtype == torch.int32
    torch.testing.assert_close(scores, exact_scores)


def test_a_user_who_has_seen_all_that_is_near_gets_the_exact_ones():
    teacher, x = clustered(5000, 3)
    available = everything(5000)
    nothing = torch.zeros(0, dtype=torch.int64)
    near, _ = retrieve(teacher, x[1:2], (nothing, nothing), available, 400)
    pairs = torch.ones(400, dtype=torch.int64), near[0].long()
    found, _ = indexed(teacher, available, 0).retrieve(x, pairs, 20)
    exact, _ = retrieve(teacher, x, pairs, available, 20)
    assert found[1].tolist() == exact[1].tolist()
    assert not {*found[1].tolist()} & {*near[0].tolist()}


def test_it_depends_on_the_seed_and_not_on_the_threads():
    teacher, x = clustered(5000, 200)
    pairs = drawn_pairs(np.random.default_rng(0), 200, 5000)[1]
    threads, found = faiss.omp_get_max_threads(), []
    for number in (1, 2):
        faiss.omp_set_num_threads(number)
        found.append(indexed(teacher, everything(5000), seed=3).retrieve(x, pairs, 10))
    faiss.omp_set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_lists_that_were_kept_serve_whatever_may_be_recommended():
    """An index of them is the one that was built with them; items that may not come are not in it."""
    teacher, x = clustered(5000, 200)
    pairs = drawn_pairs(np.random.default_rng(0), 200, 5000)[1]
    lists = ItemLists.of(teacher, everything(5000), seed=3)
    kept = ItemLists(lists.centre_LE.copy(), lists.list_I.copy())
    found = [ApproximateIndex(teacher, everything(5000), one).retrieve(x, pairs, 10) for one in (lists, kept)]
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    available = everything(5000)
    available[::3] = False
    items, _ = ApproximateIndex(teacher, available, kept).retrieve(x, pairs, 20)
    exact, _ = retrieve(teacher, x, pairs, available, 20)
    assert (items % 3 > 0).all()
    recall = np.mean([len({*mine} & {*best}) / 20 for mine, best in zip(items.tolist(), exact.tolist(), strict=True)])
    assert recall > 0.97


def test_items_that_an_external_teacher_does_not_know_are_not_in_it():
    teacher, x = clustered(500, 4)
    items = teacher.table.clone()
    items[::3] = 0
    external = ExternalTeacher(items, torch.zeros(1, 16), torch.zeros(1, dtype=torch.int64))
    nothing = torch.zeros(0, dtype=torch.int64)
    found, _ = indexed(external, everything(500), 0).retrieve(-x, (nothing, nothing), 20)
    assert (found % 3 > 0).all()


def test_a_score_that_is_no_dot_product_is_refused():
    teacher = build_teacher(TeacherConfig(model="ncf", dim=8), 30).eval()
    torch.nn.init.normal_(teacher.get_parameter("items.weight"))
    with pytest.raises(ValueError, match=r"NCF's scores are not dot products.*leave nightly.approximate_above out"):
        indexed(teacher, everything(30), 0)


def test_faiss_is_imported_by_those_who_use_it_alone(monkeypatch):
    code = "import sys, allmrec.nightly.candidates; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"pip install 'allmrec\[faiss\]'"):
        indexed(Lookup(5, 0), everything(5), 0)
