"""Download a public data set from its publisher, for the config of the same name.

    allmrec fetch-data movielens-1m --to data/movielens-1m
    allmrec fetch-data amazon-2014/Beauty --to data/amazon-2014

configs/public-data.json says which files make a data set. Where their names hold {part}, it comes after a slash.
"""

import json
import time
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from allmrec.core.settings import one_line
from allmrec.demo.public_data import Advance, RemoteFile, fetch, unpack
from jobs.runtime.command import main
from jobs.runtime.console import Console


def fetch_data(name: str, folder: Path, console: Console) -> list[Path]:
    """Download a data set's files into a folder; existing files are checked and kept.

    Raises:
        ValueError: no such data set, or as `fetch`.
    """
    paths = []
    for remote in remote_files(name):
        path = folder / remote.name
        fetched = fetch(remote, folder, _teller(console, remote.name))
        if remote.unpack:
            unpack(path)
        console.event(
            "fetched" if fetched else "exists already", file=str(path), MB=round(path.stat().st_size / 1e6, 1)
        )
        paths.append(path)
    return paths


def _teller(console: Console, name: str) -> Advance:
    """Says every five seconds how far a download is."""
    spoke = time.monotonic()

    def advance(done: int, total: int | None) -> None:
        nonlocal spoke
        if time.monotonic() - spoke >= 5:
            spoke = time.monotonic()
            of = "unknown" if total is None else round(total / 1e6)
            console.event("fetching", file=name, MB=round(done / 1e6), of=of)

    return advance


def remote_files(name: str) -> list[RemoteFile]:
    """The files of a data set, from the table. Raises ValueError where it has no such."""
    table = json.loads((files("jobs") / "configs" / "public-data.json").read_text())
    name, _, part = name.partition("/")
    if name not in table:
        known = [f"{key}/PART" if "{part}" in json.dumps(entry) else key for key, entry in table.items()]
        raise ValueError(f"no data set {name!r}; known: {', '.join(known)}")
    entries = table[name]["files"]
    if ("{part}" in json.dumps(entries)) != bool(part):
        has = f"has parts: ask for {name}/{table[name]['example']}, for example" if not part else "has no parts"
        raise ValueError(f"{name} {has}")
    try:
        return [RemoteFile(**entry | {"url": entry["url"].replace("{part}", part)}) for entry in entries]
    except ValidationError as error:
        raise ValueError(f"public-data.json: {name}: {one_line(error)}") from None


if __name__ == "__main__":
    main("fetch-data")
