"""The manifests of `cluster/`, as kubectl renders them."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
OVERLAYS = sorted(path.parent.name for path in CLUSTER.glob("overlays/*/kustomization.yaml"))
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@cache
def rendered(overlay: str) -> dict[str, dict[str, Any]]:
    """The objects of an overlay, by kind and name."""
    return by_name(kustomize(CLUSTER / "overlays" / overlay))


def kustomize(folder: Path) -> str:
    return subprocess.run(["kubectl", "kustomize", str(folder)], check=True, capture_output=True, text=True).stdout


def by_name(text: str) -> dict[str, dict[str, Any]]:
    found = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    return {f"{manifest['kind']} {manifest['metadata']['name']}": manifest for manifest in found}


def ray_spec(manifests: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The spec of the one Ray cluster that an overlay describes, in whatever kind."""
    for manifest in manifests.values():
        if manifest["kind"] == "RayCluster":
            return manifest["spec"]
        if manifest["kind"] in ("RayJob", "RayCronJob"):
            return manifest["spec"].get("jobTemplate", manifest["spec"])["rayClusterSpec"]
    raise AssertionError("there is no Ray cluster")


def pods(manifest: Any) -> list[dict[str, Any]]:
    """The pod specs anywhere in a manifest."""
    if isinstance(manifest, list):
        return [pod for part in manifest for pod in pods(part)]
    if not isinstance(manifest, dict):
        return []
    own = [manifest] if "containers" in manifest else []
    return own + [pod for part in manifest.values() for pod in pods(part)]
