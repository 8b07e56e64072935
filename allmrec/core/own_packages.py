"""Whether Python finds allmrec's packages `jobs` and `schemas`, or others of these names that come first on its path.

Called before anything of theirs is imported; imports nothing itself.
"""

import importlib.util
import sys
from pathlib import Path

_NAMES = ("jobs", "schemas")
_OURS = Path(__file__).resolve().parents[2]


def refuse_hidden_packages() -> None:
    """Ends the process with one line and exit code 2 where something hides a package of ours."""
    for name in _NAMES:
        found = _found(name)
        if found is not None and found != _OURS / name:
            print(
                f"error: {found} hides allmrec's own package {name!r}: rename it, or run elsewhere and without it in "
                "PYTHONPATH",
                file=sys.stderr,
            )
            raise SystemExit(2)


def _found(name: str) -> Path | None:
    """The folder or file that an import of that name takes; None where there is none."""
    spec = importlib.util.find_spec(name)
    folders = [] if spec is None else [*(spec.submodule_search_locations or ()), spec.origin]
    return next((Path(place).resolve() for place in folders if place), None)
