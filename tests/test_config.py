"""The config: what is wrong is said in one line that names it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.config import read_settings
from jobs.config import Config, load_config

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nprojektion: {}", "did you mean 'projection'"),
        ("name: x\nprojection: {lerning_rate: 1}", "did you mean 'learning_rate'"),
        ("name: x\nnightly: {top_k: 0}", "nightly.top_k"),
        ("name: x\nnightly: {top_k: 21}", "more than num_candidates 20"),
        ("name: a/b", "name"),
        ("[1, 2]", "YAML mapping"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(path)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"jobs/configs"):
        load_config(tmp_path / "none.yaml")


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("name: x\nnightly: {top_k: 5}")
    config = load_config(path, ["nightly.top_k=7", "projection.learning_rate=3e-4"])
    assert config.nightly.top_k == 7 and config.projection.learning_rate == 3e-4
    with pytest.raises(ValueError, match=r"section\.key=value"):
        load_config(path, ["nightly.top_k"])


@given(st.integers(1, 20), st.integers(0, 2**31))
def test_the_resolved_config_builds_the_same_config(top_k: int, seed: int) -> None:
    config = Config(**read_settings("name: x", [f"nightly.top_k={top_k}", f"seed={seed}"]))
    assert Config(**config.model_dump(mode="json")) == config


@pytest.mark.parametrize("path", sorted((ROOT / "jobs" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load_config(path).name
