"""Fields of configurations, read as what they are: absent, -1, or one number for each layer."""

from __future__ import annotations

from typing import Any


def size_field(config: Any, *names: str) -> int | None:
    """Return the first of these fields that states a positive size; None where none does.

    Configurations differ: a field may be absent, None, -1 for "no limit" (XLNet), a list with a
    number for each layer (OpenELM, Gemma 3n), or a field of each layer's own configuration, which
    is an error to ask of the whole (Gemma 4). Of several numbers the largest counts.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The configuration of the part that has the blocks.
    *names : str
        The fields, the best one first.
    """
    for name in names:
        sizes = _values(config, name)
        known = [n for n in sizes if isinstance(n, int) and not isinstance(n, bool) and n > 0]
        if known and len(known) == len(sizes):
            return max(known)
    return None


def _values(config: Any, name: str) -> list[Any]:
    """Return the values of a field: one, or one for each layer."""
    by_layer = getattr(config, "_heterogeneity_spec", None)
    if by_layer is not None and name in by_layer.per_layer_attributes:
        layers = [config.per_layer_config[i] for i in range(config.num_hidden_layers)]
        return [getattr(layer, name, None) for layer in layers]
    value = getattr(config, name, None)
    return list(value) if isinstance(value, (list, tuple)) else [value]
