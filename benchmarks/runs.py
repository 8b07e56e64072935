"""The runs that a benchmark compares: a config's own, and one for each row, which shares what the two have in common.

Knows how a workspace uses another one's artifacts; the benchmarks decide which steps make a row.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from allmrec.core.workspace import Workspace
from jobs.config import Config, load_config
from jobs.runtime.console import Console
from jobs.runtime.step import Step, execute

PREPARED = (
    Workspace.items,
    Workspace.sequences,
    Workspace.evaluation_cases,
    Workspace.rejected,
    Workspace.item_text_embeddings,
)
SHARED = (*PREPARED, Workspace.teacher)


class ConfigRuns:
    """A config, and the runs of its rows: the same config with some keys changed, each in a workspace of its own."""

    def __init__(self, path: Path, overrides: list[str], root: Path, console: Console):
        self.path, self.overrides, self.root, self.console = path, overrides, root, console
        self.base = load_config(path, overrides)

    def changed(self, name: str, changes: list[str]) -> Config:
        """The config with some keys changed, in a workspace of its own under the root."""
        return load_config(self.path, [*self.overrides, *changes, f"name={name}", f"root={self.root}"])

    def made(self, config: Config, steps: Iterable[Step]) -> Workspace:
        """Steps that are up to date are skipped."""
        for step in steps:
            execute(step, config, self.console)
        return config.workspace


def link(config: Config, sources: Mapping[str, Config]) -> None:
    """Create a workspace that links to folders of other configs, and only to these: a step would write through a link.

    Raises:
        ValueError: one of them is not on a disk.
    """
    for uri in (config.workspace_uri, *(source.workspace_uri for source in sources.values())):
        if "://" in uri:
            raise ValueError(f"{uri}: rows share artifacts by links between folders; set root to one of this machine")
    folder = Path(config.workspace_uri)
    for path in (*folder.glob("*"), *folder.glob("systems/*")):
        if path.is_symlink():
            path.unlink()
    for name, source in sources.items():
        own, shared = folder / name, (Path(source.workspace_uri) / name).resolve()
        if own.exists():
            shutil.rmtree(own)  # from a row that shared more with the run
        own.parent.mkdir(parents=True, exist_ok=True)
        shared.mkdir(parents=True, exist_ok=True)
        own.symlink_to(shared)
