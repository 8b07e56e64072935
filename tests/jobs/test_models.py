"""`allmrec models import`: what it says, and errors in one line."""

import json

from typer.testing import CliRunner

from jobs.cli import app
from tests.llm.test_importing import save


def test_importing_says_how_to_name_the_model_and_errors_take_one_line(tiny_llm, tiny_tokenizer, tmp_path):
    source, target = save(tiny_llm, tiny_tokenizer, tmp_path / "source", "pickled"), str(tmp_path / "target")
    command = ["models", "import", str(source), "--to", target, "--dtype", "bfloat16", "--log-json"]
    first, again = (CliRunner().invoke(app, command) for _ in range(2))
    done = json.loads(first.stdout.splitlines()[-1])
    assert (done["event"], done["llm.name"], done["dtype"]) == ("done", target, "bfloat16")
    assert [json.loads(line)["event"] for line in again.stdout.splitlines()] == ["start", "skip", "done"]
    (source / "pytorch_model.bin").write_bytes(b"nothing")
    wrong = CliRunner().invoke(app, [*command[:4], str(tmp_path / "other")])
    assert wrong.exit_code == 2 and len(wrong.stderr.splitlines()) == 1 and "pytorch_model.bin" in wrong.stderr
