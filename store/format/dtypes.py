"""The data types of a store, including bfloat16.

bfloat16 is the zarr-extensions data type of that name; numpy represents it by ``ml_dtypes``.
:mod:`actlas.store.zarr_hook` registers it with zarr-python, which has no such type.
"""

from __future__ import annotations

from typing import Literal, get_args

import ml_dtypes
import numpy as np

ActivationDtype = Literal["bfloat16", "float16", "float32"]

ACTIVATION_DTYPES: tuple[str, ...] = get_args(ActivationDtype)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """Return the little-endian numpy dtype for the name of a Zarr v3 data type.

    Examples
    --------
    >>> numpy_dtype("bfloat16").itemsize
    2
    """
    return BFLOAT16 if name == "bfloat16" else np.dtype(name).newbyteorder("<")


def fill_value(name: str) -> int | str:
    """Return the JSON fill value of a data type: NaN for floats, -1 for signed integers, else 0.

    Every Zarr library reads a missing chunk as this value without an error, so the value must not
    look like data.
    """
    if name in ACTIVATION_DTYPES or name == "float64":
        return "NaN"
    return -1 if name.startswith("int") else 0
