"""The console's entry: `allmrec VERB` and `python -m allmrec VERB`."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

_PACKAGES = ("jobs", "schemas")


def main() -> None:
    if hidden := _hidden():
        print(f"error: {hidden}", file=sys.stderr)
        raise SystemExit(2)
    console()()


@cache
def console() -> "typer.Typer":
    """The product's commands and the demo's."""
    from jobs.cli import app
    from jobs.demo.commands import add_demo

    add_demo(app)
    return app


def _hidden() -> str | None:
    """What is wrong where packages of the same names as ours come first on the path."""
    ours = Path(__file__).resolve().parents[1]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or not found.is_relative_to(ours / name):
            return f"{found or f'a folder {name}'} hides allmrec's own package {name!r}: rename it, or run elsewhere"
    return None


if __name__ == "__main__":
    main()
