"""Capturing activations in a forward pass: hooks that always come off, and an early end.

Nothing here assumes inference: no tensor is detached and no gradient mode is set; the caller
decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from actlas.pipeline.forward.hooks import accepted_inputs, attach, masked
from actlas.pipeline.hookpoints.tensors import first_tensor
from actlas.store.errors import HookpointError
from actlas.store.format.schema import HookpointSpec

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int
    from torch import Tensor, nn

Read = Callable[[str, "torch.Tensor"], Any]
"""Called inside the pass with a hookpoint's name and tensor; returns what is kept of the tensor."""


class _EndOfPassError(BaseException):
    """Raised inside a forward pass to end it: no later module is read.

    It is not an ``Exception``, so that a model's own ``except Exception`` cannot catch it.
    """


class Capture:
    """A context manager that captures a model's activations at hookpoints.

    A pass ends as soon as every hookpoint was read, in whatever order the model comes to them:
    later blocks, the final norm and the projection onto the vocabulary do not run.

    Parameters
    ----------
    model : torch.nn.Module
        The model, on any device.
    hookpoints : sequence of HookpointSpec
        The hookpoints, as :func:`actlas.pipeline.hookpoints.names.resolve` returns them.
    stop_early : bool
        Whether a pass ends after the last hookpoint. If not, ``output`` is what the model returned.

    Attributes
    ----------
    output : object
        The return value of the last pass; None where the pass was ended early.

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
        input_ids: Int[Tensor, "batch positions"] | None = None,
        attention_mask: Int[Tensor, "batch positions"] | None = None,
        *,
        shape: tuple[int, int] | None = None,
        read: Read | None = None,
        **inputs: Any,
    ) -> dict[str, Any]:
        """Run one forward pass and return the activations, by hookpoint, in the order given.

        Parameters
        ----------
        input_ids : Tensor of int64, shape [batch, position], optional
            Tokens.
        attention_mask : Tensor of int64, shape [batch, position], optional
            1 for tokens, 0 for padding. Default: no padding.
        shape : tuple of int, optional
            Sequences and positions of every hookpoint's tensor. Default: those of ``input_ids``.
        read : callable, optional
            ``read(name, tensor)`` is called inside the pass, as soon as the model comes to a
            hookpoint, and its result is kept. A model may write to its own tensors later in the
            pass: where only the numbers matter, copy or gather them here. Default: the tensor
            itself, with its gradient history.
        **inputs
            Other inputs of the model, by name.

        Returns
        -------
        dict of str to Tensor, shape [batch, position, unit]
            Or to the results of ``read``.

        Raises
        ------
        HookpointError
            A hookpoint's tensor has another shape than the hookpoint was resolved with, or the pass
            did not reach it.
        ModelError
            A mask is given to a model that takes none.
        """
        if not self._handles:
            raise RuntimeError("Capture is a context manager: call it inside its with statement.")
        self._found, self._read = {}, read or _whole
        if shape is None:
            if input_ids is None:
                raise ValueError("expected input_ids or a shape, got neither")
            shape = input_ids.shape[0], input_ids.shape[1]
        self._shape, self.output = shape, None
        given = accepted_inputs(self.model, {"use_cache": False})
        given |= masked(self.model, attention_mask)
        if input_ids is not None:
            given["input_ids"] = input_ids
        try:
            self.output = self.model(**{**given, **inputs})
        except _EndOfPassError:
            pass  # every hookpoint was read
        finally:
            found, self._found = self._found, None
        missing = [h.name for h in self.hookpoints if h.name not in found]
        if missing:
            raise HookpointError(
                f"The forward pass did not reach {', '.join(missing)}. Resolve the hookpoints on "
                "the model that runs.",
                hookpoints=missing,
            )
        return {h.name: found[h.name] for h in self.hookpoints}

    def _install(self, hookpoint: HookpointSpec) -> Any:
        return attach(self.model, hookpoint, partial(self._note, hookpoint))

    def _note(self, hookpoint: HookpointSpec, value: Any) -> None:
        if self._found is None or hookpoint.name in self._found:
            return  # not a pass of this capture, or the module runs again within it
        tensor = first_tensor(value)
        if tensor is not None and hookpoint.layout == "feature_map" and tensor.ndim == 4:
            tensor = tensor.flatten(2).transpose(1, 2)
        if tensor is not None and self._is_flat(tensor, hookpoint):
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

    def _is_flat(self, tensor: torch.Tensor, hookpoint: HookpointSpec) -> bool:
        """Return whether a tensor is [batch * position, unit] or [batch, row, column, unit]."""
        n_batch, n_positions = self._shape
        whole = tensor.shape[-1:] == (hookpoint.width,)
        if tensor.ndim == 2:
            return whole and len(tensor) == n_batch * n_positions
        by_row = tensor.ndim == 4 and len(tensor) == n_batch
        return whole and by_row and math.prod(tensor.shape[1:3]) == n_positions

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _whole(_name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor
