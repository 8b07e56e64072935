"""docs/config.md is generated; it has every key of the config, and a sentence for each."""

import importlib.util
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
    silent = [
        f"{path}.{key}"
        for path, section in page.sections(page.Config)
        if path
        for key in section.model_fields
        if not page.comments(section).get(key) and not list(page._models(section.model_fields[key].annotation))
    ]
    assert not silent
