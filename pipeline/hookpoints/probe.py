"""The smallest input of a model, for tracing a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

N_BATCH = 2

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31)

_IMAGE_SIZE = 224

_COUNTED = ("head", "expert", "group")


@dataclass(frozen=True, slots=True)
class Probe:
    """The input of a traced forward pass.

    Attributes
    ----------
    arrays : dict of str to Tensor
        The keyword arguments of the model's ``forward``, on the model's device.
    shape : tuple of int or None
        Sequences and positions. Positions are None for images, whose modules each have their own
        number.
    """

    arrays: dict[str, torch.Tensor]
    shape: tuple[int, int | None]

    @property
    def what(self) -> str:
        """The kind of input, in the plural: ``sequences`` or ``images``."""
        return "images" if self.shape[1] is None else "sequences"


def probe_inputs(model: nn.Module) -> Probe:
    """Return the smallest input of a model: a few tokens, or black images.

    The input of a vision-language model is text alone: its blocks are those of its language model.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model on any device, best on the meta device.

    Returns
    -------
    Probe
        ``input_ids`` [2, position], with a number of positions that differs from all sizes of the
        model; or ``pixel_values`` [2, channel, height, width] of the size in its configuration.
    """
    import torch

    config: Any = model.config
    device = next(iter(model.parameters())).device
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        height, width = _image_size(config)
        channels = getattr(config, "num_channels", None) or 3
        pixels = torch.zeros((N_BATCH, channels, height, width), device=device)
        return Probe({"pixel_values": pixels.to(_floating(model))}, (N_BATCH, None))
    n_positions = _unlike(set(_sizes(model)))
    tokens = torch.zeros((N_BATCH, n_positions), dtype=torch.long, device=device)
    return Probe({"input_ids": tokens}, (N_BATCH, n_positions))


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", None) or _IMAGE_SIZE
    if isinstance(size, Mapping):
        size = (size["height"], size["width"])
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return int(height), int(width)


def _floating(model: nn.Module) -> torch.dtype:
    return next(p.dtype for p in model.parameters() if p.is_floating_point())


def _sizes(model: nn.Module) -> Iterator[int]:
    """Yield the sizes that the model's tensors may have along axes other than positions."""
    for parameter in model.parameters():
        yield from parameter.shape
    text: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    for name, value in text.to_dict().items():
        if isinstance(value, int) and any(word in name for word in _COUNTED):
            yield value


def _unlike(sizes: set[int]) -> int:
    """Return a number of positions that no other axis has, so that the axis is identifiable."""
    return next((n for n in _PRIMES if n not in sizes and n + 1 not in sizes), _PRIMES[-1])
