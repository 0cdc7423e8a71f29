"""The parts of a model that a forward pass does not reach before its deepest hookpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from actlas.pipeline.hookpoints.blocks import find_blocks
from actlas.pipeline.hookpoints.graph import Trace, trace
from actlas.store.errors import HookpointError
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    from torch import nn


def unreached(
    skeleton: nn.Module, hookpoints: Sequence[HookpointSpec], *, mixed: bool = False
) -> tuple[str, ...]:
    """Return the blocks, and the projection onto the vocabulary, that a run never computes.

    They are found in one forward pass of the skeleton. Only elements of lists of modules and the
    output embedding are considered: other modules may be read without being run.

    Parameters
    ----------
    skeleton : torch.nn.Module
        The model on the meta device.
    hookpoints : sequence of HookpointSpec
        The hookpoints of the run.
    mixed : bool
        Whether the texts contain images: the traced pass over text reaches no image tower, whose
        modules are then kept.

    Returns
    -------
    tuple of str
        Module paths, none inside another. Empty where the pass cannot be traced to its end without
        values.
    """
    from torch import nn

    traced = trace(skeleton)
    ran = _ran(traced, hookpoints)
    if ran is None:
        return ()
    elements = [
        f"{path}.{name}"
        for path, module in skeleton.named_modules()
        if isinstance(module, nn.ModuleList)
        for name, _ in module.named_children()
    ]
    if mixed:
        try:
            blocks = find_blocks(skeleton, traced)
        except HookpointError:
            return ()  # without a stack of blocks, text and images cannot be told apart
        elements = [path for path in elements if _inside(path, blocks)]
    head = skeleton.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        elements += [path for path, module in skeleton.named_modules() if module is head]
    apart = [path for path in elements if not any(_inside(run, path) for run in ran)]
    whole = [path for path in apart if not any(path != p and _inside(path, p) for p in apart)]
    return tuple(path for path in whole if not _shares(skeleton, path, whole))


def _ran(traced: Trace, hookpoints: Sequence[HookpointSpec]) -> set[str] | None:
    """Return the modules that run up to the last hookpoint; None where one is not reached."""
    calls = traced.calls
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
    """Return whether a module shares parameters with one outside all of ``others``."""
    own = {id(parameter) for parameter in model.get_submodule(path).parameters()}
    return any(
        id(parameter) in own
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not any(_inside(name, other) for other in others)
    )
