"""Imports point down: jobs → allmrec → schemas, and Ray is the jobs' alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {"allmrec": {"ray", "jobs", "tests"}, "schemas": {"ray", "jobs", "allmrec", "tests"}, "jobs": {"tests"}}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_imports_point_down(layer: str) -> None:
    files = list((ROOT / layer).rglob("*.py"))
    assert files
    wrong = {str(path.relative_to(ROOT)): found for path in files if (found := imported(path) & FORBIDDEN[layer])}
    assert not wrong


def test_nothing_is_unpickled_and_no_remote_code_runs() -> None:
    for layer in FORBIDDEN:
        for path in (ROOT / layer).rglob("*.py"):
            text = path.read_text()
            for call in ("pickle.load", "torch.load(", "trust_remote_code=True"):
                assert call not in text, f"{path} uses {call}"
