"""Optional packages: which extra of actlas brings a package that is not installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from actlas.store.errors import MissingPackageError

P = ParamSpec("P")
R = TypeVar("R")

EXTRAS: Mapping[str, str] = {
    **dict.fromkeys(
        ("accelerate", "datasets", "PIL", "pyarrow", "ray", "safetensors", "tokenizers"), "extract"
    ),
    **dict.fromkeys(("torch", "transformers", "huggingface_hub", "zstandard"), "extract"),
    **dict.fromkeys(("dask", "matplotlib", "pandas", "scipy"), "analysis"),
    "obstore": "cloud",
}
"""The extra that brings each optional package, by the name that is imported."""


def explained(error: ModuleNotFoundError) -> MissingPackageError | None:
    """Return an error that says how to install a missing package; None if no extra brings it.

    Parameters
    ----------
    error : ModuleNotFoundError
        The error of an import.

    Examples
    --------
    >>> print(explained(ModuleNotFoundError("...", name="dask.array")))
    this needs dask, which is not installed: pip install 'actlas[analysis]'
    """
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return MissingPackageError(
        f"this needs {package}, which is not installed: pip install 'actlas[{EXTRAS[package]}]'",
        package=package,
    )


def explains_missing(function: Callable[P, R]) -> Callable[P, R]:
    """Have a function say how to install an optional package that it needs and does not find."""

    @functools.wraps(function)
    def explaining(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            if (plain := explained(error)) is None:
                raise
            raise plain from error

    return explaining
