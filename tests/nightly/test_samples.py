"""Some users of a run by title: drawn by hash, never one who is suppressed, and hostile titles are text."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from allmrec.core.artifacts import read_table
from allmrec.core.hashing import shard_of
from allmrec.core.storage import Storage, open_storage
from allmrec.nightly.report import render
from allmrec.nightly.samples import sample_users
from allmrec.publishing.lease import hold_lease
from allmrec.publishing.suppression import suppress, users_page
from jobs.config import Config
from tests.evaluation.tiny import NUM_USERS, TITLES
from tests.nightly.nightly_run import FIRST, SECOND, make, with_nightly
from tests.nightly.test_nightly_run import partition
from tests.nightly.test_report import HOSTILE


def shown(output: Path, day: Any = FIRST) -> str:
    return open_storage(str(output)).read(users_page(day)).decode()


def users_of(page: str) -> list[str]:
    return re.findall(r"<h3>(user-\d+) ", page)


def test_users_are_shown_by_title_beside_their_previous_list(
    tiny_workspace: tuple[Config, Storage], tmp_path: Path
) -> None:
    config, storage = tiny_workspace
    config = with_nightly(config, tmp_path, ranker="teacher")
    first = make(config, storage)
    page = shown(tmp_path)
    users = users_of(page)
    assert len(users) == len({*users}) == 20 and first.report["sampled_users"] == 20
    assert "recommended before" in page and f"recommended on {FIRST}" not in page
    history = next(row for row in read_table(storage.at("sequences")).to_pylist() if row["user_id"] == users[0])
    part = page.split("<h3>")[1]
    titles = re.findall(r"<li>([^<]+?) *(?:<|\n)", part)
    length = len(history["item_index"])
    assert titles[:length] == [TITLES[item - 1] or "untitled item" for item in reversed(history["item_index"])]
    names = dict(zip(read_table(storage.at("items"))["item_id"].to_pylist(), TITLES, strict=True))
    assert titles[length:] == [names[item] or "untitled item" for item in first.lists()[users[0]]]
    assert f"{first.by_user[users[0]]['items'][0]['score']:.4g}" in part
    make(config, storage, SECOND)
    again = shown(tmp_path, SECOND)
    assert f"recommended on {FIRST}" in again and {*users_of(again)} != {*users}, "other users every night"
    make(with_nightly(config, tmp_path / "none", sampled_users=0), storage)
    assert not (tmp_path / "none" / users_page(FIRST)).exists()
    assert "users.html" not in (tmp_path / f"none/_reports/run_date={FIRST}/report.html").read_text()
    assert "users.html" in (tmp_path / f"_reports/run_date={FIRST}/report.html").read_text()


def test_the_catalogue_is_searched_once_for_all_users_of_a_shard(
    tiny_workspace: tuple[Config, Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make(with_nightly(tiny_workspace[0], tmp_path, ranker="teacher"), tiny_workspace[1]).job
    items, searched = job.items(), []
    users, (rows, _) = job.users.read(0, items.index_P).users, job.run.read_shard(0)
    search = pc.index_in
    monkeypatch.setattr(pc, "index_in", lambda *of: searched.append(of) or search(*of))
    found = sample_users(9, np.uint64(1), users, rows, rows.slice(3), items.catalogue, items.new_I)
    assert len(found) == 9 and len(searched) == 1
    assert all(one["items"] == one["previous"] for one in found if one["previous"])
    assert {one["previous"] is None for one in found} == {True, False}


def test_suppressed_users_are_not_shown(tiny_workspace: tuple[Config, Storage], tmp_path: Path) -> None:
    config, storage = tiny_workspace
    config = with_nightly(config, tmp_path, ranker="teacher", sampled_users=NUM_USERS)
    make(config, storage)
    gone = users_of(shown(tmp_path))[:3]
    output = open_storage(str(tmp_path))
    with hold_lease(output, FIRST, 60) as lease:
        suppress(output, FIRST, pa.array(gone[:1]), pa.array([], pa.string()), lease)
    assert not output.exists(users_page(FIRST)), "nor after they were"
    partition(storage, "suppressed_users", gone)
    suppressed = with_nightly(config, tmp_path, suppressed_users="gone.parquet")
    make(suppressed, storage, SECOND)
    left = users_of(shown(tmp_path, SECOND))
    assert len(left) == NUM_USERS - 3 and not {*gone} & {*left}
    assert all(user not in shown(tmp_path, SECOND) for user in gone)
    assert shard_of(pa.array(left), 3).max() == 2, "of all shards"


@pytest.fixture
def hostile() -> str:
    items = [{"item_id": HOSTILE, "title": HOSTILE, "score": 0.5, "new": True}]
    user = {"user_id": HOSTILE, "history": [HOSTILE], "length": 1, "source": "llm", "items": items, "previous": items}
    new = {"item_id": HOSTILE, "title": HOSTILE, "users": 3}
    page = {"run_date": "2026-11-21", "run_id": "r1", "previous": "2026-11-20"}
    return render({**page, "users": [user], "new_items": [new]}, "users.html.jinja")


def test_a_browser_shows_hostile_titles_as_text(hostile: str, tmp_path: Path) -> None:
    assert "<script" not in hostile and "<img" not in hostile and "{{ 7 * 7 }}" in hostile
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if not browser:
        pytest.skip("no browser is installed: apt-get install chromium")
    path = tmp_path / "users.html"
    path.write_text(hostile)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<title>Users of 2026-11-21</title>" in dom.stdout, dom.stderr
    assert "<script" not in dom.stdout and "<img" not in dom.stdout and "onerror=alert" in dom.stdout
    assert dom.stdout.count("<li>") == 3
