"""The config: what is wrong is said in one line that names it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allmrec.core.settings import read_settings
from jobs.config import Config, load_config

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"name: x\nseed: 1\nseed: 2", r"config\.yaml: line 3: the key 'seed' already exists, in line 2"),
        (b"name: x\ndata: {columns: {a: 1, a: 2}}", "line 2: the key 'a' already exists"),
        (b"name: x\nnightly:\n\ttop_k: 1", "line 3: .*indent with spaces, not tabs"),
        ("name: x\nroot: é".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8"),
        ("name: x".encode("utf-16"), "line 1: the file is UTF-16"),
        (b"name: x\nroot: a\x00b", "line 2: .*#x0000 is not allowed"),
        (b"name: x\n~: 1", "line 2: a key must be text"),
        (b"name: x\n? [a]\n: 1", "line 2: a key must be text"),
        (b"name: x\nroot: !!binary aGk=", "line 2: .*tags are not read"),
        (b"name: x\nroot: !!python/object:os.system ls", "line 2: .*tags are not read"),
        (b"name: x\n---\nseed: 1", "line 2: .*another document"),
        (b"name: x\nroot: [a", "line 2: not valid YAML"),
        (b"name: x\nnightly: {top_k: 12:30}", "nightly.top_k"),
        (b"name: x\nseed: yes", "seed"),
    ],
)
def test_what_yaml_lets_pass_is_refused_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_values_are_the_text_that_stands_there() -> None:
    text = (
        "a: [007, 010, 1_000, 12:30, 2024-01-01, 1.0, yes, off, NULL, null, ~, 0x10, 1e3]\n"
        "b: &common {start: 2024-01-01, end: null}\n"
        "c: {<<: *common, end: ~, 1: NULL}\n"
        "d:\ne: 'null'"
    )
    words = "007 010 1_000 12:30 2024-01-01 1.0 yes off NULL null ~ 0x10 1e3"
    assert read_settings(text) == {
        "a": words.split(),
        "b": {"start": "2024-01-01", "end": None},
        "c": {"start": "2024-01-01", "end": None, "1": None},
        "d": None,
        "e": "null",
    }
    assert read_settings("\ufeffa: é".encode(), ["b.c=[NULL, 1]", "d="]) == {
        "a": "é",
        "b": {"c": ["NULL", "1"]},
        "d": None,
    }
    with pytest.raises(ValueError, match=r"--set 'a=\[': line 1: not valid YAML"):
        read_settings("", ["a=["])


def test_keys_have_their_types_and_lists_of_text_their_text(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "name: 2024\nseed: 7\n"
        "data:\n  interactions: {format: csv, nulls: [NULL, \\N, 0], quoted_newlines: yes, quote: null}\n"
        "  events: [1, on]\n  start: 2024-01-01\n  min_rating: 3e0\n"
        "llm: {deepspeed_overrides: {train: {lr: 1e-4, auto: auto, on: true, buckets: [5e8, 3]}}}\n"
    )
    config = load_config(path)
    assert (config.name, config.seed) == ("2024", 7)
    assert config.data.interactions.nulls == ["NULL", "\\N", "0"]
    assert config.data.interactions.quoted_newlines is True and config.data.interactions.quote is None
    assert config.data.events == ["1", "on"] and config.data.min_rating == 3
    assert str(config.data.start) == "2024-01-01"
    assert config.llm.deepspeed_overrides == {"train": {"lr": 1e-4, "auto": "auto", "on": True, "buckets": [5e8, 3]}}
    with pytest.raises(ValueError, match="cannot read the config"):
        load_config(tmp_path)
