"""Names of files in a model's folder that several modules know."""

from __future__ import annotations

CONFIG_FILE = "config.json"

SINGLE_FILE = "model.safetensors"

INDEX_FILE = "model.safetensors.index.json"

ADAPTER_FILE = "adapter_config.json"
