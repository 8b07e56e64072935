"""The verb that makes a stand-in LLM."""

from pathlib import Path

import pyarrow as pa
import pytest

from allmrec.core.artifacts import read_file, read_manifest, writing
from allmrec.core.storage import open_storage
from allmrec.llm.loading import LLMConfig, load_llm
from jobs.demo.config import DemoConfig
from jobs.demo.standin_llm import STEP
from jobs.runtime.console import Console
from jobs.runtime.step import Context, execute
from schemas import items

SMALL = {"vocab_size": 400, "max_positions": 320}


def test_writes_a_committed_model_once(tmp_path: Path) -> None:
    config = DemoConfig(
        name="t", root=str(tmp_path), standin_llm=SMALL, prompt={"max_history": 2, "max_title_tokens": 6}
    )
    storage = open_storage(config.workspace_uri)
    rows = [
        {
            "item_id": f"i{i}",
            "title": f"Title {chr(65 + i)}",
            "item_index": i,
            "popularity": 0,
            "interactions": 0,
            "text_hash": "",
        }
        for i in range(1, 21)
    ]
    table = pa.Table.from_pylist(rows, items.SCHEMA)
    with writing(storage.at("items"), "items", "test") as out:
        out.table(0, items.SCHEMA, table)

    assert execute(STEP, config, Console(log_json=True))
    model = storage.at("models/llm")
    manifest = read_manifest(model)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(manifest.files)
    assert all(read_file(model, manifest, name) for name in manifest.files)
    assert manifest.stats["bound"] < manifest.stats["cross_entropy"]
    load_llm(LLMConfig(name=model.uri))
    assert not execute(STEP, config, Console(log_json=True))


def test_a_bucket_is_refused_in_words() -> None:
    config = DemoConfig(name="t", root="s3://bucket/runs")
    context = Context(config, config.workspace, Console(), fingerprint="")
    with pytest.raises(ValueError, match="local folder"):
        STEP.plan(context)
