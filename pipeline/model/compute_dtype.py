"""The dtype that a model computes in: requested, or chosen by a measurement on the device.

Many CPUs have no instructions for products of bfloat16 or float16 matrices and emulate them, often
many times slower than float32. The choice is recorded in the plan, so that a store's rows are all
computed in one dtype, on whatever machine a run is resumed.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from actlas.pipeline.model.files import checkpoint_dtype
from actlas.pipeline.model.host import total_host_bytes
from actlas.store.errors import ModelError
from actlas.store.format.dtypes import ACTIVATION_DTYPES, numpy_dtype

if TYPE_CHECKING:
    import torch

CLEARLY_SLOWER = 1.25
"""How many times the float32 seconds the checkpoint's dtype must take before float32 is chosen.
Below that, its smaller weights are worth more, and noise must not decide."""

MAX_MEMORY_SHARE = 0.5
"""Largest share of the machine's memory that float32 weights may fill where they are chosen."""

_ROWS, _INNER, _COLUMNS = 64, 512, 512
"""Sizes of the measured product, [rows, inner] x [inner, columns]: a layer of a small model."""

_ROUNDS = 12

_MAX_SECONDS = 0.1


class ComputeDtype(NamedTuple):
    """A dtype to compute in, and the reason for it.

    Attributes
    ----------
    name : str
        ``bfloat16``, ``float16`` or ``float32``.
    reason : str
        The reason, as the lines of a plan print it.
    """

    name: str
    reason: str


def choose_compute_dtype(
    asked: str, config: Any, files: tuple[Path, ...], n_parameters: int, device: str | None
) -> ComputeDtype:
    """Return the dtype that a model is to compute in.

    A dtype other than ``auto`` is taken as it is. For ``auto`` it is the checkpoint's own, unless
    the model runs on a CPU that multiplies matrices of that dtype clearly slower than float32 ones.

    Parameters
    ----------
    asked : {"auto", "bfloat16", "float16", "float32"}
        The requested dtype.
    config : transformers.PreTrainedConfig
        The model's configuration.
    files : tuple of Path
        The weight files, whose dtype counts where the configuration states none.
    n_parameters : int
        Parameters of the model: float32 is chosen only where its weights fit this machine.
    device : str or None
        The device that the model will run on: ``auto``, ``cpu``, ``cuda``, ...; None where it
        runs on other machines, whose devices are not known.

    Raises
    ------
    ModelError
        The checkpoint has a dtype that actlas does not compute in.
    """
    if asked != "auto":
        return ComputeDtype(asked, "requested")
    own = stated_dtype(config, files)
    if own == "float32":
        return ComputeDtype(own, "the checkpoint's")
    if device is None:
        return ComputeDtype(own, "the checkpoint's; not measured, since it runs elsewhere")
    if device == "auto":
        from actlas.pipeline.model.device import resolve_device

        device = resolve_device(device)
    if device != "cpu":
        return ComputeDtype(own, f"the checkpoint's, on {device}")
    slowdown = product_slowdown(own)
    if slowdown <= CLEARLY_SLOWER:
        return ComputeDtype(own, f"the checkpoint's: fast on this CPU, {_times(slowdown)}")
    memory = total_host_bytes()
    n_bytes = n_parameters * numpy_dtype("float32").itemsize
    if memory is not None and n_bytes > MAX_MEMORY_SHARE * memory:
        why = f"float32 weights would not fit this machine, though {own} is slow on its CPU"
        return ComputeDtype(own, f"the checkpoint's: {why}, {_times(slowdown)}")
    return ComputeDtype(
        "float32",
        f"the checkpoint's {own} is slow on this CPU, {_times(slowdown)} (--model-dtype {own} "
        "overrides)",
    )


def _times(slowdown: float) -> str:
    return f"{slowdown:.2g} times the seconds of float32 for a matrix product"


def stated_dtype(config: Any, files: tuple[Path, ...]) -> str:
    """Return the dtype that the configuration states, else that of most weights in the files.

    Without files, those are the initial weights of an untrained model, which are float32.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's configuration.
    files : tuple of Path
        The weight files.

    Raises
    ------
    ModelError
        The checkpoint has a dtype that actlas does not compute in.
    """
    stated = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    name = str(stated).removeprefix("torch.") if stated is not None else checkpoint_dtype(files)
    if stated is None and not files:
        name = "float32"  # in which initial weights are drawn
    if name not in ACTIVATION_DTYPES:
        raise ModelError(
            f"The checkpoint's dtype is {name}; expected one of {', '.join(ACTIVATION_DTYPES)}. "
            "Name the dtype to compute in: --model-dtype bfloat16.",
            dtype=name,
        )
    return str(name)


@lru_cache
def product_slowdown(dtype: str) -> float:
    """Return how many times longer a product of matrices takes on this CPU than in float32.

    Products of both dtypes are warmed up and then timed in turn on one core; the shortest time of
    each counts. A load on the machine therefore lengthens the measurement and not its result. It
    takes some milliseconds, once in a process.

    Parameters
    ----------
    dtype : str
        ``bfloat16`` or ``float16``.
    """
    import torch

    from actlas.pipeline.model.device import torch_threads

    operands = [
        (torch.ones(_ROWS, _INNER, dtype=one), torch.ones(_COLUMNS, _INNER, dtype=one))
        for one in (getattr(torch, dtype), torch.float32)
    ]
    timed: list[list[float]] = []
    with torch_threads(1):
        for pair in operands:
            _seconds(*pair)  # The first product of a dtype also prepares its kernel.
        until = time.perf_counter() + _MAX_SECONDS
        while len(timed) < _ROUNDS and (not timed or time.perf_counter() < until):
            timed.append([_seconds(*pair) for pair in operands])
    return min(own for own, _ in timed) / min(float32 for _, float32 in timed)


def _seconds(rows: torch.Tensor, weights: torch.Tensor) -> float:
    import torch

    with torch.inference_mode():
        start = time.perf_counter()
        torch.nn.functional.linear(rows, weights)
        return time.perf_counter() - start
