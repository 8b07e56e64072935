"""What the nightly run cannot work with is named in one line; nothing is published."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from allmrec.core.storage import LocalStorage, open_storage
from jobs.nightly import nightly
from jobs.runtime.console import Console
from tests.evaluation.tiny import tiny_config
from tests.jobs.test_nightly import with_nightly

DATE, QUIET = date(2026, 11, 20), Console(log_json=True)

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        ("bundles/*/projectors/projectors.safetensors", r"projectors\.safetensors is damaged"),
        ("bundles/*/bundle.json", r"bundle\.json is damaged"),
        ("sequences/part-00001.parquet", r"sequences/part-00001\.parquet is damaged"),
    ],
)
def test_a_damaged_bundle_or_table_is_named(tiny_workspace, tmp_path: Path, damaged: str, message: str) -> None:
    config, storage = tiny_workspace
    (path,) = LocalStorage(Path(storage.uri)).root.glob(damaged)
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"?" * 9)
    try:
        with pytest.raises(ValueError, match=message) as refused:
            nightly(with_nightly(config, output=str(tmp_path / "out")), QUIET, DATE)
    finally:
        path.write_bytes(content)
    assert "\n" not in str(refused.value)
    assert_nothing_published(tmp_path / "out")


def test_candidates_that_cannot_be_read_are_named(tiny_workspace, tmp_path: Path) -> None:
    pq.write_table(pa.table({"user": ["user-00"], "item_ids": [["item-00"]]}), tmp_path / "renamed.parquet")
    pq.write_table(pa.table({"user_id": ["user-00"], "item_ids": ["item-00"]}), tmp_path / "text.parquet")
    empty = pa.table({"user_id": pa.array([], pa.string()), "item_ids": pa.array([], pa.list_(pa.string()))})
    pq.write_table(empty, tmp_path / "empty.parquet")
    for name, message in (
        ("nowhere", "candidates: no such path: .*nowhere"),
        ("renamed", "column 'user_id' is missing"),
        ("text", r"item_ids.* it must be a list of ids"),
        ("empty", "candidates: .*no row"),
    ):
        given = {"paths": [str(tmp_path / f"{name}.parquet")]}
        with pytest.raises(ValueError, match=message):
            nightly(with_nightly(tiny_workspace[0], output=str(tmp_path / "out"), candidates=given), QUIET, DATE)
    assert_nothing_published(tmp_path / "out")


def test_a_run_without_a_bundle_says_what_to_do(tmp_path: Path) -> None:
    config = with_nightly(tiny_config(tmp_path), output=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"no bundle is promoted|nothing here yet; run the step that writes it"):
        nightly(config, QUIET, DATE)
    assert not (tmp_path / "out").exists()


@pytest.mark.s3
def test_an_output_that_cannot_be_written_is_named(tiny_workspace, s3, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_nightly(tiny_workspace[0], storage=s3, output="s3://no-such-bucket-anywhere/out")
    with pytest.raises(ValueError, match="there is no bucket 'no-such-bucket-anywhere'"):
        nightly(config, QUIET, DATE)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ValueError, match="no credentials; set AWS_ACCESS_KEY_ID"):
        nightly(config, QUIET, DATE)


def assert_nothing_published(output: Path) -> None:
    storage = open_storage(str(output))
    assert not list(storage.list("run_date=")) and not storage.exists("latest.json")
