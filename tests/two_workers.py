"""Two processes that train together, for tests of what one comes to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import distributed as dist

ROOT = Path(__file__).parents[1]


def losses_of_two(module: str, llm_folder: Path, folder: Path) -> dict[str, Any]:
    """What rank 0 of `python -m MODULE LLM FOLDER RANK` writes into losses.json of the folder."""
    command = [sys.executable, "-m", module, str(llm_folder), str(folder)]
    quiet = {"cwd": ROOT, "env": os.environ | {"PYTHONWARNINGS": "ignore"}}
    workers = [subprocess.Popen([*command, str(rank)], **quiet) for rank in range(2)]
    assert [worker.wait(timeout=240) for worker in workers] == [0, 0]
    found: dict[str, Any] = json.loads((folder / "losses.json").read_text())
    return found


def end_worker() -> None:
    """At once: threads of its process group that are still there while Python ends may abort the process."""
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
