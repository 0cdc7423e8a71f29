"""What a sparse autoencoder was trained on, as SAELens's ``cfg.json`` records it.

docs/sae.md has the table of all fields. :mod:`~actlas.analysis.sae.differences` compares them with
a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actlas.analysis.sae.record import CONFIG_FILE
from actlas.store.errors import SaeError
from actlas.store.format.schema import Plan

FIELDS: Mapping[str, tuple[type, ...]] = {
    "model_name": (str,),
    "model_class_name": (str,),
    "model_from_pretrained_kwargs": (dict,),
    "hook_name": (str,),
    "hook_layer": (int,),
    "hook_head_index": (int,),
    "hook_name_out": (str,),
    "hook_head_index_out": (int,),
    "hf_hook_name": (str,),
    "hf_hook_name_out": (str,),
    "prepend_bos": (bool,),
    "context_size": (int,),
    "seqpos_slice": (list,),
    "exclude_special_tokens": (bool, list),
    "model_weights_sha256": (str,),
}
"""The fields that are compared, with their types; any may be None or missing."""

NOT_COMPARED = frozenset(
    [
        *("dataset_path", "dataset_trust_remote_code", "disable_concat_sequences"),
        *("sequence_separator_token", "neuronpedia_id", "sae_lens_version", "l0"),
        *("sae_lens_training_version", "training_architecture", "num_dead_features"),
    ]
)
"""Fields of SAELens's metadata that do not say which tensor the rows are."""

RENAMED = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
}
"""Fields that SAELens renamed before version 3, and their present names."""


def trained_on(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of a configuration that say what the autoencoder was trained on.

    Parameters
    ----------
    config : mapping
        The content of ``cfg.json``, of any version of SAELens. Before version 6 these fields are at
        the top, and ``prepend_bos`` is true where it is missing.
    folder : Path
        The folder of the file, for messages.

    Raises
    ------
    SaeError
        A field is of another type.
    """
    metadata = config.get("metadata")
    early = metadata is None
    source: Any = config if early else metadata
    if not isinstance(source, dict):
        raise SaeError(
            f"{folder / CONFIG_FILE}: metadata is {repr(metadata)[:100]}, expected an object.",
            field="metadata",
        )
    known = {str(RENAMED.get(name, name)): value for name, value in source.items()}
    if not early:  # what is missing in the metadata may be at the top
        known = {name: config[name] for name in FIELDS if name in config} | known
    for name, kinds in FIELDS.items():
        value = known.get(name)
        if value is None:
            continue
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            words = " or ".join(kind.__name__ for kind in kinds)
            raise SaeError(
                f"{folder / CONFIG_FILE}: {'' if early else 'metadata.'}{name} is {value!r}, "
                f"expected {words}, or null.",
                field=name,
            )
    if early and known.get("hook_name"):
        known.setdefault("prepend_bos", True)
    names = FIELDS if early else known.keys()
    return {name: known[name] for name in names if known.get(name) not in (None, "")}


def of_plan(plan: Plan) -> dict[str, Any]:
    """Return the fields for a sparse autoencoder that is trained on a store.

    Parameters
    ----------
    plan : Plan
        The plan of the store.
    """
    bos = begins_with_special(plan)
    return {
        "context_size": plan.windows.max_length,
        **({} if bos is None else {"prepend_bos": bos}),
        "model_from_pretrained_kwargs": {},
        "model_weights_sha256": plan.model.weights_sha256,
    }


def begins_with_special(plan: Plan) -> bool | None:
    """Return whether every window begins with a special token; None where the plan cannot say.

    Parameters
    ----------
    plan : Plan
        The plan of a store.
    """
    if plan.tokenizer is None:
        return None
    if plan.tokenizer.prefix_ids:
        return True
    return None if plan.request.get("messages_field") else False
