"""`allmrec`, `python -m allmrec` and `python -m jobs.VERB`: the same options, errors and exit codes."""

import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from allmrec.__main__ import console, main
from allmrec.core.errors import QualityGateFailed, StoreUnavailable
from allmrec.publishing.lease import RunHeld

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


def test_an_option_that_commands_share_says_the_same_everywhere() -> None:
    said: dict[str, set[str]] = {}
    commands = [typer.main.get_command(console())]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        for option in command.params:
            said.setdefault(max(option.opts, key=len), set()).add(getattr(option, "help", ""))
    shared = ("--config", "--set", "--dry-run", "--log-json", "--force", "--replace")
    assert all(len(said[option]) == 1 for option in shared) and len(said["--date"]) == 4


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


CODES = [
    (ValueError("mend\nit"), 2),
    (PermissionError(13, "Permission denied", "/data"), 2),
    (StoreUnavailable("no answer"), 1),
    (ConnectionRefusedError("no head"), 1),
    (QualityGateFailed("too few"), 3),
    (RunHeld("by process 7"), 4),
    (RuntimeError("a defect"), 1),
]


@pytest.mark.parametrize("log_json", [False, True])
@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_an_error_is_one_line_and_an_exit_code(
    error: Exception,
    code: int,
    log_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        logging.getLogger("library").warning("the store is\nslow")
        raise error

    monkeypatch.setattr("jobs.config.load_config", fail)
    monkeypatch.setattr(sys, "argv", ["allmrec", "nightly", "--config", "c.yaml", *["--log-json"] * log_json])
    with pytest.raises(SystemExit) as ended:
        main()
    shown, text = capsys.readouterr(), str(error).replace("\n", " ")
    assert ended.value.code == code
    if log_json:
        warning, failed = map(json.loads, shown.out.splitlines())
        assert shown.err == "" and warning["event"] == "warning" and warning["message"] == "the store is slow"
        assert failed["event"] == "failed" and failed["exit_code"] == code and failed["error"].endswith(text)
        assert ("traceback" in failed) is isinstance(error, RuntimeError)
        return
    warning_line, *lines, last = shown.err.splitlines()
    assert shown.out == "" and warning_line == "warning: the store is slow"
    assert last.startswith("error: ") and last.endswith(text)
    if isinstance(error, RuntimeError):  # in Python's own form
        assert lines[0].startswith("Traceback") and lines[-1] == "RuntimeError: a defect"
    else:
        assert not lines


@pytest.mark.filterwarnings("ignore:'allmrec.__main__' found in sys.modules")
def test_every_module_with_a_command_runs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("recommendations", "demo.demo", "demo.fetch_data", "demo.standin_shipped", "demo.sample_data"):
        monkeypatch.setattr(sys, "argv", [f"{module}.py", "--help"])
        monkeypatch.delitem(sys.modules, f"jobs.{module}", raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"jobs.{module}", run_name="__main__")
        assert ended.value.code == 0 and "Usage" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["sample_data.py", "--output", "/proc/none"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("jobs.demo.sample_data", run_name="__main__")
    shown = capsys.readouterr().err
    assert ended.value.code == 2 and shown.startswith("error: ") and shown.count("\n") == 1


SECRET, PASSWORD = "MARKED-in-the-environment", "MARKED-in-the-config"


@pytest.mark.parametrize("log_json", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        [f"storage.endpoint_url=http://user:{PASSWORD}@127.0.0.1:9", "root=s3://bucket"],  # the store does not answer
        [f"root=s3://key:{PASSWORD}@bucket/x"],  # no such bucket name
        [f"root=ftp://user:{PASSWORD}@host/x"],  # no such scheme
        [f"nightly.timezone={SECRET}"],  # no such zone
        [SECRET],  # no key
    ],
)
def test_no_error_quotes_a_secret(
    settings: list[str],
    log_json: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "c.yaml").write_text("name: x\nstorage: {max_attempts: 1}\n")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ENDPOINT_URL", "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, "")  # loading the config sets them
    overrides = [part for setting in settings for part in ("--set", setting)]
    monkeypatch.setattr(
        sys,
        "argv",
        ["allmrec", "nightly", "--config", str(tmp_path / "c.yaml"), *overrides, *["--log-json"] * log_json],
    )
    monkeypatch.setenv("ALLMREC_TRACEBACK", "1")  # where most is printed
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    assert ended.value.code in (1, 2) and "***" in shown.out + shown.err
    assert "MARKED" not in shown.out + shown.err
