"""A new version of the package uses what an earlier one wrote: tables, bundles, runs that are published."""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pyarrow as pa
import pytest

from allmrec.core.version import __version__
from allmrec.nightly import reuse, score
from allmrec.publishing import reader, run
from allmrec.publishing.reader import read_recommendations
from jobs import bundle
from jobs.nightly import nightly
from jobs.runtime.console import Console
from jobs.runtime.step import execute
from schemas.recommendations import SCHEMA
from tests.evaluation.tiny import NUM_USERS
from tests.fixtures.releases.write import DATE, FOLDER, defaults, release_config, steps
from tests.jobs.test_prepare import SHOP, config_of, log, prepared, write_parquet

QUIET = Console(log_json=True)
RELEASES = sorted(path.stem for path in FOLDER.glob("*.json"))

pytestmark = pytest.mark.usefixtures("in_process")


def upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is a patch release later, in every module."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in ("allmrec", "jobs") and getattr(module, "__version__", None) == __version__:
            monkeypatch.setattr(module, "__version__", f"{__version__}.post1")


def events(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("release", RELEASES)
def test_the_next_run_continues_from_an_earlier_release(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    upgrade(monkeypatch)
    ZipFile(FOLDER / f"{release}.zip").extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    config = release_config()
    output = str(Path("tiny/recommendations"))
    before = read_recommendations(output).to_pylist()
    assert not execute(bundle.STEP, config, QUIET), "the bundle is not built again"
    nightly(config, QUIET, DATE)
    assert [event["event"] for event in events(capsys)] == ["skip", "skip"], "the run is published, by this identity"
    nightly(config, QUIET, DATE + timedelta(days=1))
    assert events(capsys)[-1]["reused"] == NUM_USERS
    same = ("user_id", "items", "source", "bundle")
    after = read_recommendations(output).to_pylist()
    assert [[row[name] for name in same] for row in after] == [[row[name] for name in same] for row in before]


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("release", RELEASES)
def test_a_column_is_added_to_the_recommendations(
    release: str, nullable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of the run before lack it: they are reused if it may be null, and made again if it must not."""
    ZipFile(FOLDER / f"{release}.zip").extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    schema = SCHEMA.append(pa.field("note", pa.string(), nullable=nullable))
    for module in (run, reader, reuse, score):
        monkeypatch.setattr(module, "SCHEMA", schema)
    make = score.ScoreShards.recommendations

    def with_note(*arguments: Any) -> pa.Table:
        with monkeypatch.context() as before:
            before.setattr(score, "SCHEMA", SCHEMA)
            rows = make(*arguments)
        return rows.append_column(schema.field("note"), [pa.array(["new"] * len(rows), pa.string())])

    monkeypatch.setattr(score.ScoreShards, "recommendations", with_note)
    nightly(release_config(), QUIET, DATE + timedelta(days=1))
    assert events(capsys)[-1]["reused"] == (NUM_USERS if nullable else 0)
    notes = read_recommendations("tiny/recommendations").column("note").unique().to_pylist()
    assert notes == [None if nullable else "new"]


@pytest.mark.parametrize("release", RELEASES)
def test_another_default_is_another_algorithm(release: str) -> None:
    """Identities leave out what is at its default."""
    now = {step.verb: step for step in steps()}
    for verb, then in json.loads((FOLDER / f"{release}.json").read_text()).items():
        if verb in now and now[verb].algorithm == then["algorithm"]:
            found = defaults(now[verb])
            changed = [key for key, value in then["defaults"].items() if key in found and found[key] != value]
            assert not changed, f"raise the algorithm of {verb}, or restore the default"


def test_a_patch_release_prepares_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "log" / "a.parquet", log())
    config = config_of(tmp_path / "runs", tmp_path / "log", write_parquet(tmp_path / "shop.parquet", SHOP))
    storage, _ = prepared(config)
    written = {entry.key for entry in storage.list("histories/")}
    upgrade(monkeypatch)
    capsys.readouterr()
    prepared(config)
    assert "start" not in {event["event"] for event in events(capsys)}
    write_parquet(tmp_path / "log" / "b.parquet", [log()[0]])
    prepared(config)
    kept = written & {entry.key for entry in storage.list("histories/")}
    assert len(kept) > len(written) / 2, "of an added file the new events alone are read"
