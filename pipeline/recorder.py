"""Noting every operation of a forward pass while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actlas.pipeline.capture import first_tensor
from actlas.pipeline.flow import Node, Trace

if TYPE_CHECKING:
    import torch


def recorder(found: Trace, *, numbers: bool) -> Any:
    """Return a mode in which every operation is noted.

    With ``numbers``, a tensor that is made on the meta device is made on the CPU, and is taken to
    the meta device only where it meets another one there.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves, tree_map

    def to_meta(value: Any) -> Any:
        return value.to("meta") if isinstance(value, torch.Tensor) else value

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Holds every tensor, so that no two share an address."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.numbers: dict[int, int] = {}
            self.held: list[torch.Tensor] = []
            self.time = 0

        def tick(self) -> int:
            self.time += 1
            return self.time

        def number(self, tensor: torch.Tensor) -> int:
            if id(tensor) not in self.numbers:
                self.put(tensor, Node("", (), tuple(tensor.shape), plain=True))
            return self.numbers[id(tensor)]

        def put(self, tensor: torch.Tensor, node: Node) -> None:
            self.numbers[id(tensor)] = found.add(node)
            self.held.append(tensor)

        def see(self, value: Any) -> tuple[int | None, tuple[int, ...] | str]:
            tensor = first_tensor(value)
            if tensor is None:
                return None, type(value).__name__
            return self.number(tensor), tuple(tensor.shape)

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
            inputs = tuple(self.number(tensor) for tensor in given)
            if numbers:
                if "device" in kwargs:
                    kwargs["device"] = torch.device("cpu")
                if any(tensor.is_meta for tensor in given):
                    kwargs.pop("device", None)
                    args, kwargs = tree_map(to_meta, (args, kwargs))
            result = func(*args, **kwargs)
            name = func._schema.name.removeprefix("aten::").removesuffix("_")
            plain = kwargs.get("alpha", 1) == 1
            for tensor in tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.put(tensor, Node(name, inputs, tuple(tensor.shape), plain))
            return result

    return Recorder()
