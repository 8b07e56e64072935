"""The steps of cluster/Dockerfile, and a run of them in a clean root where no Docker daemon is to be had.

    debootstrap --include=python3-venv bookworm /tmp/root && python -m tests.cluster.image /tmp/root

Debian's own python3 (bookworm has 3.11) plays the base image's. Knows the instructions that the Dockerfile uses.
"""

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "cluster" / "Dockerfile"


def steps() -> list[tuple[str, str]]:
    """Instruction and argument of every step, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    found = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(step.split(" ", 1)[0], step.split(" ", 1)[1]) for step in found.splitlines() if step]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the repository out of the build: the last line that fits counts."""
    out = False
    for line in (REPOSITORY / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and _fits(path, pattern):
            out = not line.startswith("!")
    return out


def _fits(path: str, pattern: str) -> bool:
    parts = path.split("/")
    if pattern.startswith("**/"):
        return any(fnmatch(part, pattern[3:]) for part in parts)
    return any(fnmatch("/".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def run(root: Path) -> None:
    environment, folder, user = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}, "/", "0"
    for instruction, argument in steps():
        print(instruction, argument, flush=True)
        if instruction == "RUN":
            exports = " ".join(f"{name}={value}" for name, value in environment.items())
            command = f"cd {folder} && env -i HOME=/root {exports} sh -ec {_quoted(argument)}"
            subprocess.run(["chroot", f"--userspec={user}", root, "/bin/sh", "-c", command], check=True)
        elif instruction == "ENV":
            name, value = argument.split("=", 1)
            environment[name] = value
        elif instruction == "WORKDIR":
            folder = argument
            (root / argument.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "USER":
            user = argument
        elif instruction == "COPY":
            *sources, target = argument.split()
            for source in sources:
                _copy(source, root / folder.lstrip("/") / target)
        else:
            assert instruction == "FROM", instruction


def _copy(source: str, target: Path) -> None:
    path = REPOSITORY / source
    if path.is_file():
        shutil.copy(path, target)
        return
    kept = [file for file in path.rglob("*") if file.is_file() and not ignored(str(file.relative_to(REPOSITORY)))]
    for file in kept:
        copied = target / file.relative_to(path)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copied)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    run(Path(sys.argv[1]))
