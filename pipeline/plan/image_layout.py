"""The layout of a model's positions over an image, found by running the model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.pipeline.hookpoints.shapes import check_positions
from actlas.pipeline.hookpoints.tensors import first_tensor
from actlas.pipeline.model.config import LOADING_ERRORS, auto_class, quiet
from actlas.pipeline.model.vision import blank_pixels
from actlas.store.errors import HookpointError, ModelError
from actlas.store.format.schema import HookpointSpec, Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


def image_layout(
    skeleton: nn.Module, hookpoints: Sequence[HookpointSpec], processor: Any
) -> dict[str, Any]:
    """Return the layout of an image's positions: ``grid``, ``n_prefix`` and ``n_suffix``.

    ``grid`` is the rows and columns of patches; ``n_prefix`` and ``n_suffix`` count the positions
    before and after the patches, such as a class token.

    Parameters
    ----------
    skeleton : torch.nn.Module
        The model on the meta device; one pass over a black image is traced.
    hookpoints : sequence of HookpointSpec
        The hookpoints of the plan.
    processor : transformers.BaseImageProcessor
        The model's image processor.

    Raises
    ------
    HookpointError
        The hookpoints have different numbers of positions, and so cannot share rows.
    ModelError
        The positions of the patches cannot be determined.
    """
    blank = blank_pixels(processor)
    shapes = _shapes(skeleton, hookpoints, blank)
    places = {h.name: _places(shapes[h.name], h.layout) for h in hookpoints}
    counts = {name: int(np.prod(place)) for name, place in places.items()}
    check_positions(counts)
    maps = {place for place in places.values() if len(place) == 2}
    if len(maps) > 1:
        raise HookpointError(
            f"These hookpoints have feature maps of different shapes ({places}), and rows are "
            "shared by all hookpoints of a store. Make a store for each shape.",
            positions=counts,
        )
    place = next(iter(maps or places.values()))
    if len(place) == 2:
        return {"grid": place, "n_prefix": 0, "n_suffix": 0}
    height, width = blank.shape[-2:]
    grid = _grid(skeleton.config, height, width, place[0])
    n_special = place[0] - grid[0] * grid[1]
    n_prefix = _n_prefix(skeleton, blank, place[0], n_special) if n_special else 0
    return {"grid": grid, "n_prefix": n_prefix, "n_suffix": n_special - n_prefix}


def _places(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    if layout == "feature_map":
        return shape[2:]
    return shape[1:-1]


def _shapes(
    model: nn.Module, hookpoints: Sequence[HookpointSpec], blank: NDArray[Any]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each hookpoint's tensor for one image."""
    import torch

    seen: dict[str, tuple[int, ...]] = {}

    def note(name: str, value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is not None:
            seen.setdefault(name, tuple(tensor.shape))

    handles: list[Any] = []
    for hookpoint in hookpoints:
        module, name = model.get_submodule(hookpoint.module), hookpoint.name
        if hookpoint.side == "input":
            handles.append(
                module.register_forward_pre_hook(
                    lambda _m, args, kwargs, name=name: note(
                        name, args[0] if args else kwargs.get("hidden_states")
                    ),
                    with_kwargs=True,
                )
            )
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, out, n=name: note(n, out)))
    try:
        with torch.no_grad(), quiet():
            model(pixel_values=torch.from_numpy(blank).to("meta"))
    except LOADING_ERRORS as error:
        if len(seen) < len(hookpoints):
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ModelError(
                f"{type(model).__name__} cannot read the output of its image processor: {reason}. "
                "Expected the preprocessor_config.json that belongs to this model.",
                field="processor",
            ) from error
    finally:
        for handle in handles:
            handle.remove()
    return {hookpoint.name: seen[hookpoint.name] for hookpoint in hookpoints}


def _grid(config: Any, height: int, width: int, n_positions: int) -> tuple[int, int]:
    """Return rows and columns of patches; of a stage that merges patches, those of the stage."""
    patch = getattr(config, "patch_size", None)
    down, across = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    if not isinstance(down, int) or not isinstance(across, int):
        return 1, n_positions
    rows, columns = height // down, width // across
    while rows * columns > n_positions and min(rows, columns) > 1:
        rows, columns = rows // 2, columns // 2
    return rows, columns


def _n_prefix(skeleton: nn.Module, blank: NDArray[Any], n_positions: int, n_special: int) -> int:
    """Return the number of positions before the patches, found with a model of one block.

    The block has random weights. The first tensor with all positions is compared between images
    that differ in their first patch and in their last.
    """
    import torch

    config = copy.deepcopy(skeleton.config)
    config.num_hidden_layers = 1  # type: ignore[union-attr]
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        model = auto_class(type(skeleton).__name__).from_config(config).eval()
    plain = torch.zeros(blank.shape)
    first, last = plain.clone(), plain.clone()
    first[:, :, 0, 0], last[:, :, -1, -1] = 1.0, 1.0
    seen = [_positions_seen(model, image, n_positions) for image in (plain, first, last)]
    changed = next(
        (places for places in map(_changed, *seen) if all(places)), ([0], [n_positions - 1])
    )
    n_prefix, n_suffix = changed[0][0], n_positions - 1 - changed[1][-1]
    if n_prefix + n_suffix != n_special:
        raise ModelError(
            f"{type(skeleton).__name__}: {n_special} of {n_positions} positions should be no "
            f"patches, but {n_prefix} come before the first patch and {n_suffix} after the last. "
            "Expected the patches together, row by row.",
            field="processor",
        )
    return n_prefix


def _changed(plain: Tensor, *others: Tensor) -> tuple[list[int], ...]:
    """Return the positions at which each of the others differs."""
    found = []
    for other in others:
        differs = (plain - other).abs().flatten(2).amax(dim=(0, 2)) > 0
        found.append(differs.nonzero()[:, 0].tolist())
    return tuple(found)


def _positions_seen(model: nn.Module, image: Tensor, n_positions: int) -> list[Tensor]:
    """Return all modules' outputs [image, position, ...], in the order of the pass."""
    import torch

    found: list[Tensor] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.shape[1:2] == (n_positions,):
            found.append(output.float())

    handles = [m.register_forward_hook(note) for m in model.modules() if m is not model]
    try:
        with torch.no_grad(), quiet():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return found
