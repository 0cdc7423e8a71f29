"""Pooled rows as a reader sees them: one per document and hookpoint.

A document's row is its last kept token's, or the mean or the sum over all its kept tokens, in
float32. A document without tokens has a row of NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from actlas.store.errors import HookpointError, NotExtractedError
from actlas.store.format.schema import Pool
from actlas.store.shards.lazy_array import LazyArray


class Pools(Mapping[str, LazyArray]):
    """The pooled rows of one hookpoint: a lazy array [document, unit] for each pool."""

    def __init__(self, hookpoint: str, arrays: dict[str, LazyArray]) -> None:
        self._hookpoint = hookpoint
        self._arrays = arrays

    def __getitem__(self, pool: str) -> LazyArray:
        if pool not in self._arrays:
            raise NotExtractedError(
                f"{self._hookpoint} is pooled by {', '.join(self._arrays)}, not by {pool!r}. Plan "
                f"another store with --pool {pool}.",
                pool=pool,
            )
        return self._arrays[pool]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"<{self._hookpoint} pooled: {', '.join(self._arrays)}>"


class Pooled(Mapping[str, Pools]):
    """A store's hookpoints with their pooled rows: ``store.pooled["resid_post.3"]["mean"]``."""

    def __init__(self, path: str, arrays: Mapping[tuple[str, Pool], LazyArray]) -> None:
        self._path = path
        self._pools: dict[str, dict[str, LazyArray]] = {}
        for (hookpoint, pool), array in arrays.items():
            self._pools.setdefault(hookpoint, {})[pool] = array

    def __getitem__(self, hookpoint: str) -> Pools:
        if not self._pools:
            raise NotExtractedError(
                f"{self._path}: this store has no pooled rows. Plan another with --pool "
                "last,mean,sum.",
                path=self._path,
            )
        if hookpoint not in self._pools:
            raise HookpointError(
                f"hookpoint {hookpoint!r}: this store has {', '.join(self._pools)}.",
                hookpoint=hookpoint,
            )
        return Pools(hookpoint, self._pools[hookpoint])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def __repr__(self) -> str:
        return f"<pooled: {', '.join(self._pools)}>"
