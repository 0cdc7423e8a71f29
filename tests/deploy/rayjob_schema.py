"""Derive ``rayjob.schema.json`` from KubeRay's definition of a RayJob, to be run by hand.

``python tests/deploy/rayjob_schema.py ray.io_rayjobs.yaml VERSION``, with the file
``helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml`` of github.com/ray-project/kuberay.

Descriptions and the status go, parts that occur more than once are kept once: of 1.4 MB, 41 kB
stay. Unknown keys become errors: Kubernetes drops them without a word.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parent / "rayjob.schema.json"
NOTICE = (
    "Derived from KubeRay {version}, helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml "
    "(sha256 {digest}), github.com/ray-project/kuberay, Copyright The KubeRay Authors, Apache "
    "License 2.0 (see LICENSE at the root). Changed by tests/deploy/rayjob_schema.py: version v1 "
    "alone; descriptions and status left out; repeated parts moved to $defs; unknown keys refused."
)


def derive(source: bytes, version: str) -> dict[str, Any]:
    """Return the strict schema of version v1."""
    definition = yaml.load(source, Loader=yaml.CSafeLoader)
    [found] = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema = trimmed(found["schema"]["openAPIV3Schema"])
    del schema["properties"]["status"]
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    counts: Counter[str] = Counter()
    count(schema, counts)
    definitions: dict[str, Any] = {}
    names: dict[str, str] = {}
    shared = {k: share(v, counts, definitions, names) for k, v in schema.items()}
    notice = NOTICE.format(version=version, digest=hashlib.sha256(source).hexdigest())
    return {"$comment": notice, **shared, "$defs": definitions}


def trimmed(node: Any, names: bool = False) -> Any:
    """Leave descriptions out and refuse unknown keys; ``names`` where keys are properties."""
    if isinstance(node, list):
        return [trimmed(part) for part in node]
    if not isinstance(node, dict):
        return node
    kept = {
        key: trimmed(value, key == "properties" and not names)
        for key, value in node.items()
        if names or key != "description"
    }
    open_ended = kept.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in kept
    if not names and "properties" in kept and not open_ended:
        kept["additionalProperties"] = False
    return kept


def key_of(node: Any) -> str:
    return json.dumps(node, sort_keys=True)


def count(node: Any, counts: Counter[str]) -> None:
    if isinstance(node, dict | list):
        counts[key_of(node)] += 1
        for part in node.values() if isinstance(node, dict) else node:
            count(part, counts)


def share(
    node: Any, counts: Counter[str], definitions: dict[str, Any], names: dict[str, str]
) -> Any:
    """Return a node whose long repeated objects are references to one copy."""
    if isinstance(node, list):
        return [share(part, counts, definitions, names) for part in node]
    if not isinstance(node, dict):
        return node
    key = key_of(node)
    is_object = node.get("type") in ("object", "array")  # and no map of properties
    if not (is_object and counts[key] > 1 and len(key) > 200):
        return {k: share(v, counts, definitions, names) for k, v in node.items()}
    if key not in names:
        names[key] = f"d{len(names)}"
        definitions[names[key]] = {k: share(v, counts, definitions, names) for k, v in node.items()}
    return {"$ref": f"#/$defs/{names[key]}"}


if __name__ == "__main__":
    made = derive(Path(sys.argv[1]).read_bytes(), sys.argv[2])
    lines = [
        f" {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}"
        for k, v in made["$defs"].items()
    ]
    head = json.dumps({k: v for k, v in made.items() if k != "$defs"}, separators=(",", ":"))
    FILE.write_text(head[:-1] + ',\n"$defs": {\n' + ",\n".join(lines) + "\n}}\n")
