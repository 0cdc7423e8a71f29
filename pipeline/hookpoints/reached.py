"""Which parts of a model a forward pass comes to before the deepest hookpoint ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.graph import trace
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn


def unreached(
    skeleton: nn.Module, hookpoints: Sequence[HookpointSpec], *, mixed: bool = False
) -> tuple[str, ...]:
    """Return the blocks, and the projection onto the vocabulary, that are never run.

    Seen in one forward pass of the skeleton. Only elements of a list of modules and the model's
    output embedding are looked at: what else does not run may still be read by other modules.

    Parameters
    ----------
    skeleton : torch.nn.Module
        On the meta device.
    hookpoints : sequence of HookpointSpec
    mixed : bool
        Whether there are images in the texts: a pass over text comes to no image tower.

    Returns
    -------
    tuple of str
        Module paths, none inside another. Empty where the pass cannot be followed to its end
        without numbers.
    """
    from torch import nn

    ran = _ran(skeleton, hookpoints)
    if ran is None:
        return ()
    elements = [
        f"{path}.{name}"
        for path, module in skeleton.named_modules()
        if isinstance(module, nn.ModuleList)
        for name, _ in module.named_children()
    ]
    if mixed:
        elements = [path for path in elements if _inside(path, find_blocks(skeleton))]
    head = skeleton.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        elements += [path for path, module in skeleton.named_modules() if module is head]
    apart = [path for path in elements if not any(_inside(run, path) for run in ran)]
    whole = [path for path in apart if not any(path != p and _inside(path, p) for p in apart)]
    return tuple(path for path in whole if not _shares(skeleton, path, whole))


def _ran(skeleton: nn.Module, hookpoints: Sequence[HookpointSpec]) -> set[str] | None:
    """Return the modules that run until every hookpoint was met; None where not all are met."""
    calls = trace(skeleton).calls
    met: list[int] = []
    for hookpoint in hookpoints:
        times = [call.time(hookpoint.side) for call in calls if call.path == hookpoint.module]
        if not times or min(times) < 0:
            return None
        met.append(min(times))
    return {call.path for call in calls if call.entered <= max(met)}


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


def _shares(model: nn.Module, path: str, others: Sequence[str]) -> bool:
    """Whether a module's parameters are also those of one outside all of these."""
    own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    return any(
        id(parameter) in own
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not any(_inside(name, other) for other in others)
    )
