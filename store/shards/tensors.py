"""Rows as torch tensors. Torch is loaded when it is asked for: the store does not need it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import ConfigError
from actlas.store.extras import explained

if TYPE_CHECKING:
    from jaxtyping import Shaped


def to_torch(array: Shaped[NDArray[Any], "*shape"], dtype: Any = None, device: Any = None) -> Any:
    """Return an array as a torch tensor of the same shape, bfloat16 included.

    numpy has no bfloat16 of its own, and ``torch.from_numpy`` refuses that of ml_dtypes; here its
    bits are handed over. The memory is shared where the array can be written to and neither dtype
    nor device changes.

    Parameters
    ----------
    array : ndarray
        The array.
    dtype : torch dtype or str, optional
        The tensor's dtype, such as ``torch.float32`` or ``"float32"``. Default: the array's.
    device : torch device or str, optional
        The tensor's device. Default: the CPU.

    Raises
    ------
    MissingPackageError
        torch is not installed.
    ConfigError
        torch has no such dtype.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if (plain := explained(error)) is None:
            raise
        raise plain from error
    wide = array if array.flags.writeable and array.flags.c_contiguous else np.array(array)
    if wide.dtype.name == "bfloat16":
        tensor = torch.from_numpy(wide.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(wide)
    return tensor.to(dtype=None if dtype is None else torch_dtype(dtype), device=device)


def torch_dtype(dtype: Any) -> Any:
    """Return a dtype of torch, given itself or its name.

    Parameters
    ----------
    dtype : torch dtype or str
        ``torch.float32``, ``"float32"`` or ``"torch.float32"``.

    Raises
    ------
    ConfigError
        torch has no such dtype.
    """
    torch: Any = importlib.import_module("torch")
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"dtype: got {dtype!r}, expected a torch dtype such as 'float32'.")
    return found
