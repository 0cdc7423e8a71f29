"""The ``zarr.json`` of a store's root and of its ledger, from the plan alone."""

from __future__ import annotations

import json
from typing import Any

from actlas.store.format.schema import Plan
from actlas.store.format.sealing import FORMAT_VERSION


def root_metadata(plan: Plan) -> dict[str, Any]:
    """Return the ``zarr.json`` of a store's root group: the format's version, and the plan."""
    attributes = {"format_version": FORMAT_VERSION, "plan": plan.model_dump(mode="json")}
    return group_metadata({"actlas": attributes})


def ledger_metadata() -> dict[str, Any]:
    """Return the ``zarr.json`` of an empty array, in whose folder plan, receipts and leases lie.

    Zarr's libraries list a group's members, and warn of what is none; they never list an array's.
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
    """Encode a ``zarr.json``."""
    return json.dumps(metadata, indent=1, ensure_ascii=False).encode() + b"\n"


def group_metadata(attributes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes or {}}
