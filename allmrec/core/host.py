"""What a machine says of itself, before work is sent there. Imports nothing but Python's own."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    missing: tuple[str, ...]  # folders that were asked for and are not there
    gpu_bytes: int | None  # free memory of the GPU that has least; None without a GPU


def look(folders: Sequence[str]) -> Host:
    """Whether the folders exist on this machine, and how much memory its GPUs have free."""
    return Host(tuple(folder for folder in folders if not Path(folder).is_dir()), _free_gpu_bytes())


def _free_gpu_bytes() -> int | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    megabytes = [int(line) for line in answer.stdout.split("\n") if line.strip().isdigit()]
    return min(megabytes) << 20 if megabytes else None
