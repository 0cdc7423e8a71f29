"""Masks of made-up selections for real little models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actlas.analysis.localizer.masks import Mask, MaskKey
from actlas.pipeline.hookpoints.names import resolve
from actlas.pipeline.model.config import architecture_of, build_skeleton
from actlas.pipeline.model.describe import load_config
from actlas.pipeline.model.files import file_sha256, weight_files, weights_sha256


def mask_for(folder: Path, units: Mapping[str, tuple[int, ...]], **changes: Any) -> Mask:
    """A mask of a saved model; its hookpoints are all blocks' outputs and those named."""
    config = load_config(folder)
    architecture = architecture_of(config)
    skeleton = build_skeleton(config, architecture)
    text = config.get_text_config()
    hookpoints = {spec.name: spec for spec in resolve(skeleton, ["resid_post.*", *units])}
    fields: dict[str, Any] = {
        "model_id": str(folder),
        "revision": None,
        "weights_sha256": weights_sha256(weight_files(folder)),
        "config_sha256": file_sha256(folder / "config.json"),
        "architecture": architecture,
        "d_model": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "compute_dtype": "float32",
        "tokenizer_sha256": "0" * 64,
        "stimuli": "made-up",
        "stimuli_sha256": "1" * 64,
        "text_field": None,
        "label_field": None,
        "lowercase": False,
        "max_length": 12,
        "long": "truncate",
        "keep_special": False,
        "store_dtype": "float32",
        "plan_sha256": "2" * 64,
        "hookpoints": tuple(hookpoints.values()),
        "positive": "S",
        "negative": "N",
        "pool": "last",
        "signed": False,
        "top": "1%",
        "versions": {},
    }
    return Mask(MaskKey.model_validate({**fields, **changes}), dict(units))
