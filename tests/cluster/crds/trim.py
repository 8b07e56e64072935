"""Writes kuberay.json: KubeRay's CRDs as one strict JSON schema, each repeated part once.

    python tests/cluster/crds/trim.py ray.io_rayclusters.yaml ray.io_rayjobs.yaml ray.io_raycronjobs.yaml

Unknown fields are refused wherever the CRD does not keep them. Source and licence: NOTICE beside this file.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

_DROPPED = ("description", "format", "x-kubernetes-validations", "x-kubernetes-map-type", "x-kubernetes-list-type")
_SHARED_ABOVE = 200  # characters


def strict(schema: Any) -> Any:
    """A part of an OpenAPI schema as JSON schema."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept = {name: part for name, part in schema.items() if name not in _DROPPED and name != "properties"}
    keeps_unknown = kept.pop("x-kubernetes-preserve-unknown-fields", False)
    kept = {name: strict(part) for name, part in kept.items() if not name.startswith("x-kubernetes-")}
    if "properties" in schema:
        kept["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not keeps_unknown:
            kept.setdefault("additionalProperties", False)
    return kept


def shared(kinds: dict[str, Any]) -> dict[str, Any]:
    """The same schemas, with every large part that occurs more than once under `$defs`."""
    counts: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict):
            text = json.dumps(part, sort_keys=True)
            counts[text] += 1
            if counts[text] > 1:
                return
        for child in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            count(child)

    count(list(kinds.values()))
    names: dict[str, str] = {}
    definitions: dict[str, Any] = {}

    def replace(part: Any) -> Any:
        if isinstance(part, list):
            return [replace(child) for child in part]
        if not isinstance(part, dict):
            return part
        text = json.dumps(part, sort_keys=True)
        if isinstance(part.get("type"), str) and counts[text] > 1 and len(text) > _SHARED_ABOVE:
            if text not in names:
                names[text] = str(len(names))
                definitions[names[text]] = {name: replace(child) for name, child in part.items()}
            return {"$ref": f"#/$defs/{names[text]}"}
        return {name: replace(child) for name, child in part.items()}

    replaced = {kind: replace(schema) for kind, schema in kinds.items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions | replaced}


def main(paths: list[str]) -> None:
    kinds = {}
    for path in paths:
        crd = yaml.load(Path(path).read_text(), Loader=yaml.CSafeLoader)
        version = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"].pop("status", None)
        schema["properties"]["metadata"] = {"type": "object"}
        kinds[crd["spec"]["names"]["kind"]] = strict(schema)
    Path(__file__).with_name("kuberay.json").write_text(json.dumps(shared(kinds), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
