"""The examples of docs/data.md work."""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from allmrec.core.settings import read_settings
from allmrec.core.storage import S3Config
from allmrec.data.config import SourceConfig
from allmrec.data.prepare.clean import clean_interactions, log_columns
from allmrec.data.prepare.item_ids import ItemLookup
from allmrec.data.sources.source import open_source
from jobs.config import Config
from schemas import rejected

TEXT = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
KEYS = {*SourceConfig.model_fields, "events"} - {"columns"}
INLINE = [code for code in re.findall(r"`([^`\n]+)`", TEXT) if code.split(":")[0] in KEYS and ": " in code]


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_are_configs(block):
    settings = read_settings(f"name: shop\n{block}")
    config = Config(**settings)
    for section in settings.keys() - {"name"}:
        written = getattr(config, section).model_dump(mode="json", exclude_unset=True)
        assert written.keys() == settings[section].keys()


@pytest.mark.parametrize("code", INLINE)
def test_what_stands_in_a_line_is_a_key(code):
    settings = read_settings(code)
    if "events" in settings:
        assert settings["events"] == ["on", "010", "2024-01-01"]
    else:
        source = SourceConfig(**{"format": "csv", **settings})
        assert all(getattr(source, key) in (value, value == "true") for key, value in settings.items())


def test_the_examples_are_found():
    assert len(BLOCKS) >= 3
    assert {code.split(":")[0] for code in INLINE} >= {
        "nulls",
        "escape",
        "quote",
        "delimiter",
        "names",
        "timestamp_format",
    }


def test_the_first_example_reads_such_a_log(tmp_path):
    (tmp_path / "events/day=2024-02-03").mkdir(parents=True)
    lines = ["customer\tsku\taction\trating", "007\tlamp\tcart\t4", "008\tlamp\tview\t5", "009\tlamp\tcart\t3"]
    (tmp_path / "events/day=2024-02-03/log.tsv").write_text("\n".join(lines))
    text = BLOCKS[0].replace("s3://shop", str(tmp_path))
    data = Config(**read_settings(f"name: shop\n{text}")).data
    source = open_source("interactions", data.interactions, S3Config(), log_columns(data))
    table = pa.concat_tables(source.read(source.pieces[0]))
    found = clean_interactions(table, data, ItemLookup.of(pa.array(["lamp"])), {"file": "log", "from_byte": 0})
    assert found.events.column("user_id").to_pylist() == ["007"]
    assert found.filtered_out == {"other_event": 1, "below_min_rating": 1}


def test_every_reason_is_told():
    assert all(f"| `{reason}` |" in TEXT for reason in rejected.REASONS)
