"""The console's entry: `allmrec VERB` and `python -m allmrec VERB`."""

from functools import cache
from typing import TYPE_CHECKING

from allmrec.core.own_packages import refuse_hidden_packages

if TYPE_CHECKING:
    import typer


def main() -> None:
    refuse_hidden_packages()
    console()(prog_name="allmrec")


@cache
def console() -> "typer.Typer":
    """The product's commands and the demo's."""
    from jobs.cli import app
    from jobs.demo.commands import add_demo

    add_demo(app)
    return app


if __name__ == "__main__":
    main()
