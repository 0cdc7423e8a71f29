"""One forward pass of the smallest input, and what was computed from what in it.

Best on the meta device, where a pass costs no numbers: the shapes and the flow of tensors are the
same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actlas.pipeline.architecture import LOADING_ERRORS, quiet
from actlas.pipeline.capture import first_input
from actlas.pipeline.flow import Call, Trace
from actlas.pipeline.probe import Probe, probe_inputs
from actlas.pipeline.recorder import recorder

if TYPE_CHECKING:
    from torch import nn


def trace(model: nn.Module) -> Trace:
    """Run the smallest input through a model and return what was computed from what.

    Some models ask for a number on the way, which the meta device has not: for these the pass is
    run again with numbers in all that no weight went into, such as masks and positions.

    Parameters
    ----------
    model : torch.nn.Module
        On the meta device this costs milliseconds, whatever the size of the model.
    """
    probe = probe_inputs(model)
    found = _run(model, probe, numbers=False)
    if found.failure is not None and _on_meta(probe):
        again = _run(model, probe, numbers=True)
        if again.failure is None or len(again.calls) > len(found.calls):
            return again
    return found


def _on_meta(probe: Probe) -> bool:
    return all(array.is_meta for array in probe.arrays.values())


def _run(model: nn.Module, probe: Probe, *, numbers: bool) -> Trace:
    import torch

    found = Trace(probe)
    mode = recorder(found, numbers=numbers)
    arrays = probe.arrays
    if numbers:
        arrays = {name: torch.zeros_like(array, device="cpu") for name, array in arrays.items()}
    handles: list[Any] = []
    for path, module in model.named_modules(remove_duplicate=False):
        handles += _watch(path, module, found, mode)
        found.weights[path] = [tuple(p.shape) for p in module.parameters(recurse=False)]
    try:
        with torch.no_grad(), quiet(), mode:
            model(**arrays)
    except (*LOADING_ERRORS, IndexError, AssertionError) as error:
        found.failure = error
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch(path: str, module: nn.Module, found: Trace, mode: Any) -> list[Any]:
    open_calls: list[Call] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = Call(path, began=len(found.nodes), entered=mode.tick())
        call.given, call.given_shape = mode.see(first_input(args, kwargs))
        open_calls.append(call)
        found.enter(call)

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        call = open_calls.pop()
        call.gave, call.gave_shape = mode.see(output)
        call.left = mode.tick()

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave),
    ]
