"""bfloat16 for zarr-python: the zarr-extensions data type of that name, on ``ml_dtypes``.

The type has a byte order. Without one, zarr omits ``endian`` from the ``bytes`` codec, and
tensorstore rejects the array. zarr 3.4 loads this class through the ``zarr.data_type`` entry point;
for zarr 3.1 see :mod:`actlas.store.zarr_hook`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from zarr.dtype import Float16, data_type_registry

from actlas.store.format.dtypes import BFLOAT16


@dataclass(frozen=True, kw_only=True)
class BFloat16(Float16):
    """Brain floating point: 16 bits with the exponent range of float32.

    Source: zarr-extensions, ``data-types/bfloat16``.
    """

    dtype_cls: ClassVar[Any] = type(BFLOAT16)
    _zarr_v3_name: ClassVar[Any] = "bfloat16"
    _zarr_v2_names: ClassVar[Any] = ()

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> Self:
        """Return the data type for numpy's bfloat16; zarr raises its own error for other dtypes."""
        if isinstance(dtype, np.dtype) and dtype == BFLOAT16:
            return cls(endianness="little")
        return super().from_native_dtype(dtype)

    def to_native_dtype(self) -> Any:
        """Return numpy's bfloat16; ``ml_dtypes`` has only the machine's byte order."""
        return BFLOAT16


data_type_registry.register("bfloat16", BFloat16)
