"""actlas, the activation atlas: every token's activation of a transformer, in one plain store.

The names in ``__all__`` are the public interface. Each loads its module, and the libraries of that
module, when it is first used: ``actlas.open(path)`` needs neither torch nor ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actlas.store.zarr_hook import register_with_zarr

if TYPE_CHECKING:
    from actlas.analysis.batches.api import batches as batches
    from actlas.analysis.dask_array import dask_array as dask_array
    from actlas.analysis.interventions.ablation import ablated as ablated
    from actlas.analysis.localizer.localize import localize as localize
    from actlas.analysis.localizer.masks import Mask as Mask
    from actlas.analysis.sae.saelens_format import load_sae as load_sae
    from actlas.analysis.sae.train.api import train_sae as train_sae
    from actlas.jobs.derived.encode import encode_sae as encode_sae
    from actlas.jobs.derived.index import index_sae as index_sae
    from actlas.jobs.run.ablate import ablate as ablate
    from actlas.jobs.run.export import export as export
    from actlas.jobs.run.extract import extract as extract
    from actlas.jobs.run.extract import plan as plan
    from actlas.jobs.run.repair import repair as repair
    from actlas.store.errors import ActlasError as ActlasError
    from actlas.store.store import Store as Store
    from actlas.store.store import open_store as open  # noqa: A004 - as gzip.open is: actlas.open
    from actlas.store.verify.verify import verify as verify
    from actlas.store.version import VERSION as __version__  # noqa: N811 - Python's name for it

register_with_zarr()

_LAZY = {
    "ActlasError": ("actlas.store.errors", "ActlasError"),
    "Mask": ("actlas.analysis.localizer.masks", "Mask"),
    "Store": ("actlas.store.store", "Store"),
    "__version__": ("actlas.store.version", "VERSION"),
    "ablate": ("actlas.jobs.run.ablate", "ablate"),
    "ablated": ("actlas.analysis.interventions.ablation", "ablated"),
    "batches": ("actlas.analysis.batches.api", "batches"),
    "dask_array": ("actlas.analysis.dask_array", "dask_array"),
    "encode_sae": ("actlas.jobs.derived.encode", "encode_sae"),
    "export": ("actlas.jobs.run.export", "export"),
    "extract": ("actlas.jobs.run.extract", "extract"),
    "index_sae": ("actlas.jobs.derived.index", "index_sae"),
    "load_sae": ("actlas.analysis.sae.saelens_format", "load_sae"),
    "localize": ("actlas.analysis.localizer.localize", "localize"),
    "open": ("actlas.store.store", "open_store"),
    "plan": ("actlas.jobs.run.extract", "plan"),
    "repair": ("actlas.jobs.run.repair", "repair"),
    "train_sae": ("actlas.analysis.sae.train.api", "train_sae"),
    "verify": ("actlas.store.verify.verify", "verify"),
}

__all__ = [
    "ActlasError",
    "Mask",
    "Store",
    "__version__",
    "ablate",
    "ablated",
    "batches",
    "dask_array",
    "encode_sae",
    "export",
    "extract",
    "index_sae",
    "load_sae",
    "localize",
    "open",
    "plan",
    "repair",
    "train_sae",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Return a public name of actlas, loading its module on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'actlas' has no attribute {name!r}")
    from importlib import import_module

    module, attribute = _LAZY[name]
    try:
        value = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        from actlas.store.extras import explained

        if (plain := explained(error)) is None:
            raise
        raise plain from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
