"""Docs and code say things one way: words that a better one has replaced, and paths that are gone, do not come back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config import Config

ROOT = Path(__file__).parents[2]
PAGES = [page for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]) if page.name != "CHANGELOG.md"]
TOPS = ("allmrec", "jobs", "schemas", "benchmarks")

# Definitions that were renamed: not to be defined again under the name on the left.
RENAMED = {
    "jobs/runtime/ray_data.py": {"over", "pooled", "tables", "watched", "GaveUp"},
    "jobs/runtime/ray_train.py": {"_keep_only", "_prepared"},
    "allmrec/core/artifacts.py": {"seal", "unseal", "holds", "describe", "made_by", "facts"},
    "allmrec/core/distributed.py": {"place", "own", "summed", "most", "least"},
    "allmrec/projection/engine.py": {"whole", "load_placed_llm"},
    "allmrec/nightly/candidates.py": {"given"},
    "allmrec/data/prepare/clean.py": {"left_out", "set_aside"},
    "allmrec/data/prepare/filters.py": {"stays", "with_enough", "unrepeated"},
    "allmrec/metrics.py": {"worth", "gains", "measure"},
    "allmrec/evaluation/systems.py": {"places"},
    "allmrec/cf/retrieval.py": {"places_in_catalogue"},
}
ANYWHERE = {
    *("Night", "LastRun", "NightlyUsers", "ShardOfUsers", "open_night", "Scorer", "Choices", "Shelf"),
    *("Deal", "DealRows", "Dealt", "Draft", "Finish", "NamesItems", "LayOut", "Forgotten", "forgotten_users"),
    *("text_form_below", "sharers", "stalled_s", "deadline_s", "max_popular", "outside", "absurd_timestamp"),
}
KEYS = {"repeats", "core", "forgotten_users", "text_form_below", "stalled_s", "deadline_s", "alarms", "max_popular"}

# What the pages say in another word: the pattern, and the word.
WORDS = {
    r"\bdeal(s|t)?\b": "partition",
    r"\bjournal\b": "log",
    r"\bforgotten\b": "excluded",
    r"\b(set )?aside\b": "rejected",
    r"\btext form": "text embedding",
    r"\btonight": "this run",
    r"\bcarr(y|ied) over\b": "reuse",
    r"\blook(s|ed)? after\b": "manage",
    r"\bg[ai]ve(s)? up\b": "time out, end",
    r"\bg(o|oes) on\b": "resume, continue",
    r"\b(nobody|whom|somebody|anew)\b": "rephrase",
    r"\bso many\b": "up to N, about N",
    r"\balready there\b": "already exists",
    r"\bno longer\b": "say what is, not what was",
    r"\bstraight implementation\b": "reference implementation",
    r"(?<!_)\balarms?\b(?![`}])": "quality gate",
}


def definitions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def config_keys() -> set[str]:
    return set(re.findall(r"'(\w+)':", str(Config(name="any").model_dump())))


def test_renamed_definitions_are_gone() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for top in TOPS
        for path in sorted((ROOT / top).rglob("*.py"))
        for name in definitions(path)
        if name in ANYWHERE | RENAMED.get(path.relative_to(ROOT).as_posix(), set())
    ]
    assert not found
    assert not config_keys() & KEYS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_words_of_the_code(page: Path) -> None:
    if page.name == "results.md":
        pytest.skip("tables of measurements")
    found = [
        f"{page.name}:{number}: {match.group()!r}; say {word}"
        for number, line in enumerate(page.read_text().splitlines(), 1)
        for pattern, word in WORDS.items()
        for match in re.finditer(pattern, line, re.IGNORECASE)
    ]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_on_pages_exist(page: Path) -> None:
    """In backticks: files and folders of the tree, and modules that are run."""
    text = page.read_text()
    paths = re.findall(r"`((?:allmrec|jobs|schemas|benchmarks|tests|cluster|docs|\.ci)/[\w./-]*)`", text)
    paths += [
        name.replace(".", "/") + ".py" for name in re.findall(r"-m ((?:benchmarks|jobs|tests)\.[a-z_.]+[a-z])", text)
    ]
    assert not [path for path in paths if "NAME" not in path and not (ROOT / path).exists()]
