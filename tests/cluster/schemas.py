"""Strict schemas of Kubernetes' own objects and KubeRay's: an unknown field is an error."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

VERSION = "1.32"  # of Kubernetes
_KUBERAY = Path(__file__).parent / "crds" / "kuberay.json"


@cache
def _kuberay() -> dict[str, Any]:
    return json.loads(_KUBERAY.read_text())


def validate(manifest: dict[str, Any]) -> None:
    """Raises jsonschema's or kubernetes_validate's ValidationError naming the field."""
    if manifest["apiVersion"] == "ray.io/v1":
        schema = {"$ref": f"#/$defs/{manifest['kind']}", "$defs": _kuberay()["$defs"]}
        jsonschema.Draft202012Validator(schema).validate(manifest)
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
