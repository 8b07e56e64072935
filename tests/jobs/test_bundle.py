"""Building promotes; going back is one more entry, and holds until another bundle is built."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from allmrec.bundle.build import build_bundle
from allmrec.bundle.description import DESCRIPTION
from allmrec.bundle.versions import latest_bundle
from allmrec.core.commit_log import entries_after
from jobs import bundle
from jobs.cli import app
from jobs.runtime.console import Console
from jobs.runtime.step import execute, resolved
from tests.evaluation.tiny import tiny_config, write_tiny_workspace

pytestmark = pytest.mark.usefixtures("in_process")


def test_build_promote_show_verify_and_list(tmp_path, tiny_llm, tiny_tokenizer):
    config = tiny_config(tmp_path)
    storage = write_tiny_workspace(config, tiny_llm, tiny_tokenizer)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))

    def call(*arguments: str):
        result = CliRunner().invoke(app, ["bundle", *arguments, "--config", str(path), "--log-json"])
        return json.loads(result.stdout.splitlines()[-1]) if result.exit_code == 0 else result.stdout

    with pytest.raises(ValueError, match="no bundle is promoted"):
        latest_bundle(storage)
    old = build_bundle(storage, resolved(config, bundle.SECTIONS) | {"seed": 7})
    built = call("build")["version"]
    assert latest_bundle(storage) == built != old and call("build")["event"] == "skip"
    assert call("promote", old)["log_entry"] == 2 and latest_bundle(storage) == old
    assert call("promote", old)["event"] == "skip"
    assert not execute(bundle.STEP, config, Console(log_json=True)) and latest_bundle(storage) == old
    listed = call("list")["rows"]
    assert {row["version"]: row["in use"] for row in listed} == {old: True, built: False}
    assert call("show")["title"] == f"bundle {old}" and call("show", built)["title"] == f"bundle {built}"
    assert call("verify", built)["files"] == 14
    storage.write(f"bundles/{built}/projectors/projectors.safetensors", b"damage")
    for verb in ("verify", "promote"):
        assert "projectors.safetensors is damaged" in call(verb, built)
    assert "no such bundle" in call("promote", "nothing")
    of_before = json.loads(storage.read(f"bundles/{built}/{DESCRIPTION}")) | {"format": 1}
    storage.write(f"bundles/{built}/{DESCRIPTION}", json.dumps(of_before).encode())
    assert "run train-projection" in call("verify", built)
    rows = {row["version"]: row for row in call("list")["rows"]}
    assert rows[old]["in use"] and "bundle format 1 is not" in rows[built]["llm"], "the others are listed all the same"
    assert [entry["version"] for entry in entries_after(storage.at("bundles"), 0)] == [built, old]
