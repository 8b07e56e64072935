"""The order of the steps follows from what they declare."""

import random
from datetime import date
from typing import Any

import pytest

from jobs.config import Config
from jobs.pipeline import ordered, reads, run, steps_of
from jobs.runtime.console import Console
from jobs.runtime.step import Step

DATE = date(2026, 11, 20)
TABLES: dict[str, Any] = {"ranker": "blend", "users": "requested.parquet", "candidates": "given.parquet"}
CROSS_DOMAIN = {"split": {"kind": "cross-domain", "trained_in": "runs/other"}}
KINDS: list[dict[str, Any]] = [{}, {"nightly": TABLES}, {"evaluation": CROSS_DOMAIN}]


def step(verb: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Step:
    return Step(verb, sections=(), inputs=inputs, outputs=outputs, run=lambda context: {}, plan=lambda context: {})


@pytest.mark.parametrize("sections", KINDS)
def test_every_step_is_behind_those_whose_outputs_it_reads(sections: dict[str, Any]) -> None:
    steps = steps_of(Config(name="order", **sections), DATE)
    random.Random(0).shuffle(steps)
    done: set[str] = set()
    written = {name for step in steps for name in step.outputs}
    for one in ordered(steps):
        assert {*reads(one)} <= done, one.verb
        done |= {*one.outputs}
    assert done == written


def test_the_order_is_that_of_the_verbs() -> None:
    verbs = [step.verb for step in ordered(steps_of(Config(name="order", nightly=TABLES), DATE))]
    models = ["prepare", "embed", "train-cf", "train-alignment", "train-projection", "bundle"]
    assert verbs == [*models, "partition candidates", "partition users", "fit blend", "nightly", "evaluate"]


def test_steps_that_wait_for_each_other_are_named() -> None:
    with pytest.raises(ValueError, match=r"wait for each other: a, b$"):
        ordered([step("a", ("y",), ("x",)), step("b", ("x",), ("y",)), step("c", (), ("z",))])


def test_a_dry_run_shows_the_order(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"data\.interactions"):  # the first plan wants the log
        run(Config(name="order", root=str(tmp_path)), Console(log_json=True), DATE, dry_run=True)
    assert '"step": "nightly", "inputs": "bundle, sequences, items", "outputs": "recommendations"' in (
        capsys.readouterr().out
    )
