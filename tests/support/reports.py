"""JSON outputs of the command line, held against their schemas in docs/json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parents[2] / "docs" / "json"


def parsed(name: str, stdout: str) -> Any:
    """Return the JSON output of a command; it must be one line, and valid by its schema."""
    (line,) = stdout.splitlines()
    body = json.loads(line)
    assert line == json.dumps(body), "the output is what json.dumps writes"
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(body, schema, jsonschema.Draft202012Validator)
    return body
