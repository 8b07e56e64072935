"""Two hosts with Ray and this machine with S3 (`hosts.sh`): they share a network, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("hosts.sh")
HERE, HEAD, SECOND = "10.77.0.1", "10.77.0.2", "10.77.0.3"
VENV = Path(sys.prefix)

TOKEN = "MARKED-token-of-the-cluster"
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
# Ray takes a host for dead that does not answer for half a minute: on a busy machine a live one takes seconds.
_HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "6",
}
_RAY = ["ray", "start", "--block", "--disable-usage-stats", "--num-cpus", "1", "--object-store-memory", "100000000"]


def available() -> bool:
    """Whether this process may make hosts."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    probe = subprocess.run(["unshare", "--net", "ip", "link", "add", "probe", "type", "bridge"], capture_output=True)
    return probe.returncode == 0


class Hosts:
    """`head` and `second`, each with Ray and one CPU, once they are started. Code and models come with their image."""

    def __init__(self, folder: Path, models: Path):
        self.folder = folder
        for package in ("allmrec", "jobs", "schemas"):
            shutil.copytree(ROOT / package, folder / "image" / package, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(models, folder / "image" / "models")
        self._script("up", "head", "second")

    def start_head(self) -> None:
        head = ["--head", "--node-ip-address", HEAD, "--port", "6379", "--dashboard-host", "0.0.0.0"]
        self._start("head", [*_RAY, *head, "--metrics-export-port", "8090"])

    def start_second(self) -> None:
        self._start("second", [*_RAY, "--node-ip-address", SECOND, "--address", f"{HEAD}:6379"])

    def off(self, host: str) -> None:
        self._script("off", host)

    def down(self) -> None:
        self._script("down")

    def said(self, host: str) -> str:
        """What Ray's start has printed there."""
        return (self.folder / f"{host}.log").read_text()

    def _script(self, verb: str, *arguments: str) -> None:
        subprocess.run([SCRIPT, verb, self.folder, *arguments], check=True)

    def _start(self, host: str, command: list[str]) -> None:
        environment = {
            "PATH": f"{VENV / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(Path.home()),
            "PYTHONPATH": "/mnt/image",
            "OMP_NUM_THREADS": "1",
            "HIDDEN": str(ROOT),
            "VENV": str(VENV),
            **_HEALTH,
            **AUTHENTICATION,
        }
        with (self.folder / f"{host}.log").open("w") as log:
            subprocess.Popen([SCRIPT, "run", self.folder, host, *command], env=environment, stdout=log, stderr=log)
