"""Reading activations out of a forward pass: hooks that always come off, and an early end.

Nothing here assumes inference: no tensor is detached, no gradient mode is set. Who calls decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from actlas.pipeline.forward.hooks import accepted_inputs, attach
from actlas.pipeline.hookpoints.tensors import first_tensor
from actlas.store.errors import HookpointError
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

Read = Callable[[str, "torch.Tensor"], Any]
"""What is kept of a hookpoint's tensor: called with its name and the tensor, inside the pass."""


class _EndOfPassError(BaseException):
    """Ends a forward pass whose remaining modules nobody reads.

    Not an ``Exception``, so that no model's own ``except Exception`` can take it for a failure.
    """


class Capture:
    """Activations of a model's forward passes at some hookpoints.

    The pass ends as soon as every hookpoint was read, in whatever order the model comes to them:
    later blocks, the final norm and the projection onto the vocabulary do not run.

    Parameters
    ----------
    model : torch.nn.Module
    hookpoints : sequence of HookpointSpec
        As :func:`actlas.pipeline.hookpoints.names.resolve` gives them.
    stop_early : bool
        Whether the pass ends after the last hookpoint; if not, ``output`` holds what it returned.

    Attributes
    ----------
    output : object
        What the last complete forward pass returned; None where it was ended early.

    Examples
    --------
    >>> with Capture(model, hookpoints) as capture:      # doctest: +SKIP
    ...     activations = capture(input_ids)             # {name: [batch, position, unit]}
    """

    def __init__(
        self, model: nn.Module, hookpoints: Sequence[HookpointSpec], *, stop_early: bool = True
    ) -> None:
        self.model = model
        self.hookpoints = tuple(hookpoints)
        self.stop_early = stop_early
        self.output: Any = None
        self._handles: list[Any] = []
        self._found: dict[str, Any] | None = None
        self._read: Read = _whole
        self._shape: tuple[int, int] = (0, 0)

    def __enter__(self) -> Capture:
        try:
            for hookpoint in self.hookpoints:
                self._handles.append(self._install(hookpoint))
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        shape: tuple[int, int] | None = None,
        read: Read | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Run one forward pass and return what was read at each hookpoint, in model order.

        Parameters
        ----------
        input_ids : Tensor[batch, position], optional
        attention_mask : Tensor[batch, position], optional
        shape : tuple of int, optional
            Sequences and positions that every hookpoint gives. Default: those of ``input_ids``.
        read : callable, optional
            ``read(name, tensor)`` is called inside the pass, as soon as the model comes to a
            hookpoint; what it returns is kept. A model may write into its own tensors later on,
            so whoever needs numbers only should copy or gather them here. Default: the tensor
            itself, with its gradient history.
        **inputs
            Anything else that the model takes.

        Returns
        -------
        dict of str to Tensor[batch, position, unit]
            Or to whatever ``read`` returned.

        Raises
        ------
        HookpointError
            A hookpoint gave another shape or width than it was resolved with, or was not reached.
        """
        if not self._handles:
            raise RuntimeError("Capture is used inside a with statement: its hooks are not in.")
        self._found, self._read = {}, read or _whole
        if shape is None:
            if input_ids is None:
                raise ValueError("expected input_ids or a shape, got neither")
            shape = input_ids.shape[0], input_ids.shape[1]
        self._shape, self.output = shape, None
        optional = {"attention_mask": attention_mask, "use_cache": False}
        given = accepted_inputs(self.model, optional)
        if input_ids is not None:
            given["input_ids"] = input_ids
        try:
            self.output = self.model(**{**given, **inputs})
        except _EndOfPassError:
            pass  # As meant: every hookpoint was read.
        finally:
            found, self._found = self._found, None
        missing = [h.name for h in self.hookpoints if h.name not in found]
        if missing:
            raise HookpointError(
                f"The forward pass never came to {', '.join(missing)}. Resolve the hookpoints on "
                "the model that runs.",
                hookpoints=missing,
            )
        return {h.name: found[h.name] for h in self.hookpoints}

    def _install(self, hookpoint: HookpointSpec) -> Any:
        return attach(self.model, hookpoint, partial(self._note, hookpoint))

    def _note(self, hookpoint: HookpointSpec, value: Any) -> None:
        if self._found is None or hookpoint.name in self._found:
            return  # Somebody else runs the model, or the module runs again.
        tensor = first_tensor(value)
        if tensor is not None and hookpoint.layout == "feature_map" and tensor.ndim == 4:
            tensor = tensor.flatten(2).transpose(1, 2)
        if tensor is not None and tuple(tensor.shape) == (math.prod(self._shape), hookpoint.width):
            tensor = tensor.reshape(*self._shape, hookpoint.width)
        expected = (*self._shape, hookpoint.width)
        if tensor is None or tuple(tensor.shape) != expected:
            got = type(value).__name__ if tensor is None else list(tensor.shape)
            raise HookpointError(
                f"Hookpoint {hookpoint.name} (module {hookpoint.module}): got {got}, expected a "
                f"tensor of shape {list(expected)}.",
                hookpoint=hookpoint.name,
            )
        self._found[hookpoint.name] = self._read(hookpoint.name, tensor)
        if self.stop_early and len(self._found) == len(self.hookpoints):
            raise _EndOfPassError

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _whole(_name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor
