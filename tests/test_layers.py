"""Imports point down the list of folders, no two files import each other, and Ray is the jobs' alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A file may import from its own folder and from those below it. A path is looked up by its longest entry.
LAYERS = (
    "tests",
    "allmrec/__main__.py",
    "benchmarks",
    "jobs/demo",
    "jobs/cli.py",
    "jobs",
    "jobs/runtime",
    "jobs/config.py",
    "allmrec/demo",
    "allmrec/nightly",
    "allmrec/evaluation",
    "allmrec/explain",
    "allmrec/model.py",
    "allmrec/retention.py",
    "allmrec/bundle",
    "allmrec/readout",
    "allmrec/projection",
    "allmrec/alignment",
    "allmrec/recformer",
    "allmrec/llm",
    "allmrec/cf",
    "allmrec/text",
    "allmrec/data/prepare",
    "allmrec/data/sources",
    "allmrec/data",
    "allmrec/__init__.py",
    "allmrec/publishing",
    "allmrec/metrics.py",
    "allmrec/core",
    "schemas",
)
DEMO = ("allmrec/demo", "jobs/demo")
ENTRY = "allmrec/__main__.py"  # mounts the demo's commands beside the product's


def files() -> list[Path]:
    found = [path for top in ("benchmarks", "jobs", "allmrec", "schemas") for path in (ROOT / top).rglob("*.py")]
    assert len(found) > 100
    return found


def layer(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return max((entry for entry in LAYERS if name == entry or name.startswith(f"{entry}/")), key=len)


def modules(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(path: Path) -> set[Path]:
    """The project's files that a file imports, lazily or not."""
    found = set()
    for name in modules(path):
        parts = name.split(".")
        for length in (len(parts), len(parts) - 1):
            stem = ROOT.joinpath(*parts[:length])
            target = next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)
            if target is not None:
                found.add(target)
                break
    return found - {path}


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = LAYERS.index(layer(path))
    upward = [str(other.relative_to(ROOT)) for other in imported(path) if LAYERS.index(layer(other)) < own]
    assert not upward


def test_no_circle_of_files() -> None:
    graph = {path: imported(path) for path in files()}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        if path in trail:
            circle = [str(file.relative_to(ROOT)) for file in trail[trail.index(path) :]]
            raise AssertionError(f"a circle: {' → '.join(circle)}")
        if path not in done:
            for other in sorted(graph.get(path, ())):
                visit(other, (*trail, path))
            done.add(path)

    for path in sorted(graph):
        visit(path, ())


def test_ray_is_the_jobs_alone() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in files()
        if {name.split(".")[0] for name in modules(path)} & {"ray"} and path.relative_to(ROOT).parts[0] != "jobs"
    ]
    assert not [name for name in wrong if not name.startswith("benchmarks/")]


def test_data_and_publishing_do_without_torch() -> None:
    """It takes two seconds, and every worker of `prepare` and every reader would wait for them."""
    waiting = [
        path for path in files() if layer(path) in ("allmrec/data/prepare", "allmrec/data", "allmrec/publishing")
    ]
    reached = set[Path]()
    while waiting:
        path = waiting.pop()
        assert not {name for name in modules(path) if name.split(".")[0] == "torch"}, path
        reached.add(path)
        waiting += imported(path) - reached
    assert ROOT / "allmrec/core/mapped_columns.py" in reached


def test_large_packages_are_imported_where_they_are_used() -> None:
    """Each takes seconds, and every process of Ray imports the config and what that imports."""
    large = {"transformers", "deepspeed", "sentence_transformers", "peft", "faiss", "pandas", "mlflow", "matplotlib"}
    for path in files():
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not large & {name.split(".")[0] for name in names}, path


def test_the_product_does_not_know_the_demo() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in files()
        if not path.relative_to(ROOT).as_posix().startswith((*DEMO, ENTRY, "benchmarks/"))
        and any(other.relative_to(ROOT).as_posix().startswith(DEMO) for other in imported(path))
    ]
    assert not wrong


def test_nothing_is_unpickled_and_no_remote_code_runs() -> None:
    """But by torch's restricted unpickler, which builds tensors alone, when an LLM is imported."""
    restricted = 'torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)'
    for path in files():
        text = path.read_text()
        if path == ROOT / "allmrec/core/weight_files.py":
            text = text.replace(restricted, "")
        for call in ("pickle.load", "torch.load(", "trust_remote_code=True"):
            assert call not in text, f"{path} uses {call}"
