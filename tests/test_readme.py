"""What the README and the docs show: Python that runs, lines that the console takes, YAML that is a config, links."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from allmrec.__main__ import console
from allmrec.core.storage import LocalStorage
from jobs.config import Config
from tests.nightly.conftest import DAY, Shop
from tests.publishing.test_run import nightly

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def console_lines() -> list[str]:
    """Every `allmrec …` and `python -m jobs.…` of the fenced blocks, without brackets around what may be left out."""
    lines = [line for page in PAGES for block in blocks(page.read_text()) for line in block.splitlines()]
    commands = [part.strip() for line in lines for part in line.partition("#")[0].split("&&")]
    return sorted({re.sub(r"[][]", "", command) for command in commands if re.match(r"allmrec |.*-m jobs\.", command)})


def test_the_python_block_reads_what_is_published(tmp_path: Path) -> None:
    nightly(LocalStorage(tmp_path), Shop(), DAY)
    (code,) = blocks(README, "python")
    for place in ("s3://bucket/recommendations", "runs/demo/recommendations"):
        code = code.replace(place, str(tmp_path))
    names: dict = {}
    shown = []
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Expr):
            shown.append(eval(ast.unparse(statement), names))
        else:
            exec(ast.unparse(statement), names)
    frame, _, rows = shown
    assert len(frame) == Shop.num_users and {*frame.columns} >= {"user_id", "items"}
    assert len(rows.fetchall()) == sum(len(row["items"]) for shard in (0, 1) for row in Shop().rows(shard, "r"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_a_config(page: Path) -> None:
    for block in blocks(page.read_text(), "yaml"):
        keys = re.findall(r"^(\w+):", block, re.M)
        alternatives = [block] if len(keys) == len({*keys}) else block.splitlines()
        for settings in alternatives:
            Config(**{"name": "shop", **yaml.safe_load(settings)})


@pytest.mark.parametrize("line", console_lines())
def test_the_console_takes_the_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs, options and values are checked, and nothing is run."""
    words = shlex.split(re.sub(r"^.*python -m jobs\.", "", line).removeprefix("allmrec "))
    words[0] = words[0].replace("_", "-") if line.startswith(("ray", "python")) else words[0]
    command = typer.main.get_command(console())
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command = command.commands[words.pop(0)]
    command.make_context("allmrec", words)


def test_the_verbs_and_targets_of_the_readme_are_there() -> None:
    commands = typer.main.get_command(console()).commands  # type: ignore[attr-defined]
    for verb in re.findall(r"^\| `([a-z-]+)` \|", README, re.M):
        assert verb in commands, verb
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z0-9-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert re.match(r"https?://|mailto:", link) or (page.parent / link).exists(), link
