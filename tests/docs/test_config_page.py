"""docs/config.md is generated; it has every key of the config, and a sentence for each."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_config", DOCS / "make_config.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(page: ModuleType) -> None:
    assert (DOCS / "config.md").read_text() == page.render(), "run `python docs/make_config.py` and commit the page"


def test_every_key_has_a_sentence(page: ModuleType) -> None:
    undocumented = [
        f"{paths[0]}.{key}"
        for section, paths in page.sections().items()
        for key in section.model_fields
        if not page.comments(section).get(key)
    ]
    assert not undocumented, "a key's sentence is the comment beside its field"


def test_every_section_has_a_sentence_and_is_shown_once(page: ModuleType) -> None:
    text = page.render()
    for section, paths in page.sections().items():
        assert section is page.Config or section.__doc__, f"{section.__name__} needs a docstring"
        for path in paths:
            headings = [line for line in text.splitlines() if line.startswith("## ") and f"`{path}`" in line]
            assert len(headings) == 1 or not path


def test_types_are_those_of_yaml(page: ModuleType) -> None:
    for text in page.render().splitlines():
        if text.startswith("| `"):
            kind = text.split(" | ")[1]
            assert not re.search(r"\[|\b(Literal|None|tuple|str|dict)\b", kind), text
