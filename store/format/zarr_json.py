"""The ``zarr.json`` of a store's groups and of its ledger, computed from the plan."""

from __future__ import annotations

import json
from typing import Any

from actlas.store.format.schema import Plan
from actlas.store.format.sealing import FORMAT_VERSION


def root_metadata(plan: Plan) -> dict[str, Any]:
    """Return the ``zarr.json`` of a store's root group: the format's version and the plan."""
    attributes = {"format_version": FORMAT_VERSION, "plan": plan.model_dump(mode="json")}
    return group_metadata({"actlas": attributes})


def ledger_metadata() -> dict[str, Any]:
    """Return the ``zarr.json`` of the folder ``ledger``: that of an empty array.

    Zarr libraries list the members of a group and warn about files that are none; they never list
    the folder of an array.
    """
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [0],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {"about": "plan.json, receipts/, quarantine/, lease/ and logs/ of actlas"},
        "dimension_names": ["ledger"],
    }


def metadata_bytes(metadata: dict[str, Any]) -> bytes:
    """Return a ``zarr.json`` as the bytes that are stored."""
    return json.dumps(metadata, indent=1, ensure_ascii=False).encode() + b"\n"


def group_metadata(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group with these attributes."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}
