"""The image: what goes into it, in which order, and as which user it runs."""

import re
import subprocess
import sys

import pytest
import yaml

from tests.cluster.image import REPOSITORY, ignored, steps

STEPS = steps()


def test_the_base_is_the_python_that_ci_tests_by_its_digest() -> None:
    ci = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    setup = next(step["with"] for step in ci["jobs"]["make"]["steps"] if "python-version" in step.get("with", {}))
    base = STEPS[0][1]
    assert re.fullmatch(rf"python:{setup['python-version']}-slim-\w+@sha256:[0-9a-f]{{64}}", base)


def test_dependencies_are_a_layer_before_the_code() -> None:
    install = next(n for n, (_, argument) in enumerate(STEPS) if "--requirement" in argument)
    before = " ".join(argument for instruction, argument in STEPS[:install] if instruction == "COPY")
    assert not {"allmrec", "jobs", "schemas"} & {*before.split()}
    assert "--no-deps" in [*STEPS[install:]][-3][1], "the code's own layer downloads nothing"


def test_the_dependencies_are_those_of_the_package() -> None:
    command = [sys.executable, "cluster/requirements.py", "faiss", "iceberg"]
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\n")
    names = {re.split(r"[\[>=]", line)[0] for line in printed if line}
    assert {"ray", "torch", "deepspeed", "faiss-cpu", "pyiceberg"} <= names and "pytest" not in names


def test_it_does_not_run_as_root() -> None:
    assert [argument for instruction, argument in STEPS if instruction == "USER"] == ["1000"]
    assert all("cuda" not in argument.lower() for _, argument in STEPS), "torch brings its own"


@pytest.mark.parametrize(
    "path", [".env", ".git/config", "runs/demo/x", ".venv/bin/python", "allmrec/.env", "tests/a.py"]
)
def test_what_is_not_part_of_it_stays_out(path: str) -> None:
    assert ignored(path)


def test_what_it_copies_is_let_in() -> None:
    sources = [source for kind, argument in STEPS if kind == "COPY" for source in argument.split()[:-1]]
    assert sources and not [source for source in sources if ignored(source)]
    assert not ignored("allmrec/demo/standins/llm/model.safetensors")
    assert ignored("allmrec/core/__pycache__/x.pyc")
