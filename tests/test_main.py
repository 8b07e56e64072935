"""`allmrec`, `python -m allmrec` and `python -m jobs.VERB`: the same options, errors and exit codes."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from allmrec.__main__ import main

ROOT = Path(__file__).parent.parent
SCRIPT = ("-c", "from allmrec.__main__ import main; main()")  # what the installed `allmrec` does


def python(*arguments: str, at: Path, path: list[Path]) -> tuple[int, str]:
    """Exit code and what is printed on standard error."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, *arguments], cwd=at, env=environment, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("package", ["jobs", "schemas"])
def test_a_package_that_hides_ours_is_named_in_one_line(package: str, tmp_path: Path) -> None:
    hiding = tmp_path / package
    hiding.mkdir()
    (hiding / "__init__.py").touch()
    code, shown = python("-m", "allmrec", "prepare", at=tmp_path, path=[ROOT])
    assert code == 2 and shown.startswith(f"error: {hiding} hides allmrec's own package {package!r}: rename it")
    assert shown.count("\n") == 1


def test_a_folder_that_is_no_package_hides_nothing(tmp_path: Path) -> None:
    """Python prefers a package, wherever on its path."""
    for name in ("jobs", "schemas"):
        (tmp_path / name).mkdir()
    assert python("-m", "allmrec", "--help", at=tmp_path, path=[ROOT]) == (0, "")


def test_every_entry_says_so(tmp_path: Path) -> None:
    """`python -m jobs.VERB` of a folder with its own `jobs` finds that one: what it says then is Python's."""
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas/__init__.py").touch()
    for path, arguments in (
        ([tmp_path, ROOT], (*SCRIPT, "nightly")),
        ([ROOT], ("-m", "jobs.nightly")),
        ([ROOT], ("-m", "jobs.cli")),
    ):
        code, shown = python(*arguments, at=tmp_path, path=path)
        assert code == 2 and shown.startswith("error: ") and "own package 'schemas'" in shown
        assert shown.count("\n") == 1


def test_the_console_s_module_is_the_console(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("nmae: x\n")
    code, shown = python("-m", "jobs.cli", "prepare", "--config", "c.yaml", at=tmp_path, path=[ROOT])
    assert code == 2 and shown.startswith("error: ") and "nmae" in shown


@pytest.mark.filterwarnings("ignore:'allmrec.__main__' found in sys.modules")
@pytest.mark.parametrize(("verb", "module"), [("train-cf", "jobs.train_cf"), ("nightly", "jobs.nightly")])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--no-such-option"], 2),
        (["--config", "none.yaml"], 2),
        (["--config", "c.yaml", "--set", "teacher.dimm=3"], 2),
        (["--config", "c.yaml", "--dry-run"], 0),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_verb_of_its_own_module_is_the_console_s(
    verb: str,
    module: str,
    arguments: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("name: x\nroot: runs\n")

    monkeypatch.setattr(sys, "argv", ["allmrec", verb, *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    expected = capsys.readouterr()

    monkeypatch.setattr(sys, "argv", [f"{module}.py", *arguments])
    monkeypatch.delitem(sys.modules, module, raising=False)  # as in a new process
    with pytest.raises(SystemExit) as also_ended:
        runpy.run_module(module, run_name="__main__")
    assert capsys.readouterr() == expected
    assert also_ended.value.code == ended.value.code
    assert (ended.value.code, "Traceback" in expected.err) == (code, False)
    if code and "no-such" not in arguments[0]:
        assert expected.err.startswith("error: ") and expected.err.count("\n") == 1
