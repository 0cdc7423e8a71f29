"""``Units``: the raw units of a hookpoint, with the tokens of largest and smallest activation.

``extremes/<hookpoint>`` holds the ``k`` largest and ``k`` smallest activations of every unit with
their tokens, so that a query need not scan the store. One pass computes them for all units.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import table_html
from actlas.store.errors import FeatureError, FormatError
from actlas.store.features.contexts import Contexts, Peak, contexts_of, one_per_document
from actlas.store.features.distribution import of_unit
from actlas.store.format.array_spec import COLUMN_COMPRESSION, ArraySpec
from actlas.store.format.validation import CHANGED, check_span
from actlas.store.ledger.derived import group_of
from actlas.store.ledger.finished import is_finished, lost_error
from actlas.store.ledger.guards import UnitGuard
from actlas.store.ledger.job_kinds import EXTREMES
from actlas.store.shards.lazy_array import LazyArray

if TYPE_CHECKING:
    from jaxtyping import Float32

    from actlas.store.format.schema import Receipt
    from actlas.store.read.reader import StoreReader

CHUNK_UNITS = 256
"""Units per inner chunk."""

KEEP_MAX = 1024
"""The maximum number of tokens kept of each end."""

ENDS = ("top", "bottom")


def extreme_specs(n_units: int, k: int) -> dict[str, ArraySpec]:
    """Return the arrays of a hookpoint's extremes, by name."""
    specs = {}
    for end in ENDS:
        for what, dtype in (("value", "float32"), ("t", "int64")):
            specs[f"{end}_{what}"] = ArraySpec(
                path=f"{end}_{what}",
                shape=(n_units, k),
                dtype=dtype,
                shard_rows=-(-n_units // CHUNK_UNITS) * CHUNK_UNITS,
                chunk_rows=CHUNK_UNITS,
                compression=COLUMN_COMPRESSION,
                dimensions=("unit", "rank"),
            )
    return specs


class Units:
    """The raw units of one hookpoint. Get them with ``store.units(hookpoint)``.

    Attributes
    ----------
    hookpoint : str
        The hookpoint.
    n_units : int
        The number of units: the hookpoint's width.
    k : int
        The number of tokens kept of each end.
    """

    def __init__(self, store: StoreReader, hookpoint: str, receipt: Receipt) -> None:
        self.store, self.hookpoint = store, hookpoint
        self.n_units = store.activations[hookpoint].shape[1]
        self.k = _kept(receipt)
        self._folder = group_of(receipt)
        self._guard = UnitGuard(f"{receipt.job} of {store.path}", receipt.objects)

    def __len__(self) -> int:
        return self.n_units

    def __repr__(self) -> str:
        return f"<{self.n_units:,} units of {self.hookpoint}, {self.k} tokens of each end>"

    def _repr_html_(self) -> str:
        kept = f"{self.k} tokens of each end"
        return table_html(
            [("units of", self.hookpoint), ("units", f"{len(self):,}"), ("kept", kept)]
        )

    def top(self, unit: int, k: int = 20) -> Peak:
        """Return the tokens with the largest activations, descending; ties by ascending token."""
        return self._end("top", unit, k)

    def bottom(self, unit: int, k: int = 20) -> Peak:
        """Return the tokens with the smallest activations, ascending; ties by ascending token."""
        return self._end("bottom", unit, k)

    def activations(
        self, unit: int, start: int, stop: int
    ) -> Float32[NDArray[np.float32], " {stop-start}"]:
        """Return a unit's activation on tokens [start, stop); shape [stop - start].

        The rows of these tokens are scattered over their shard, so most of it is read.
        """
        rows = self.store.row_of(np.arange(start, stop, dtype=np.int64))
        taken = self.store.activations[self.hookpoint].take(rows)[:, unit]
        values: NDArray[np.float32] = taken.astype(np.float32)
        return values

    def contexts(
        self,
        unit: int,
        k: int = 20,
        *,
        bottom: bool = False,
        words: int = 20,
        distinct: bool = False,
    ) -> Contexts:
        """Return the tokens with a unit's largest activations, with words around them.

        Parameters
        ----------
        unit : int
            The unit.
        k : int
            The maximum number of tokens; at most :attr:`k` are kept.
        bottom : bool
            Whether to return the smallest activations instead.
        words : int
            The number of words on each side.
        distinct : bool
            Whether to return at most one token of each document.

        Raises
        ------
        FeatureError
            There is no such unit, or fewer tokens were kept.
        """
        end = "bottom" if bottom else "top"
        if distinct:
            peaks = one_per_document(self.store, self._end(end, unit, self.k), k)
        else:
            peaks = self._end(end, unit, k)
        kept = [*self._end("top", unit, 1).value, *self._end("bottom", unit, 1).value]
        moments = self.store.statistics(self.hookpoint)
        rows = "special tokens too" if self.store.plan.keep_special else "all tokens"
        shown = "smallest" if bottom else "largest"
        if distinct and len(peaks.t) < k:
            shown += f": {len(peaks.t)} of {k}, since {self.k} tokens of each end are kept"
        return contexts_of(
            self.store,
            peaks,
            words,
            title=f"{self.hookpoint}, unit {unit}",
            facts={
                "mean": f"{moments.mean[unit]:.4g}",
                "std": f"{moments.std[unit]:.4g}",
                "min": f"{moments.min[unit]:.4g}",
                "max": f"{moments.max[unit]:.4g} ({rows})",
                "shown": shown,
            },
            scale=max((abs(float(value)) for value in kept), default=0.0),
            shade=lambda start, stop: self.activations(unit, start, stop),
            histogram=lambda: of_unit(self.store, self.hookpoint, unit),
        )

    def check(self, unit: int) -> None:
        """Raise ``FeatureError`` if there is no unit of this number."""
        if not 0 <= unit < self.n_units:
            raise FeatureError(
                f"unit {unit}: {self.hookpoint} has units 0 to {self.n_units - 1}.", unit=unit
            )

    def _end(self, end: str, unit: int, k: int) -> Peak:
        self.check(unit)
        if k > self.k:
            raise FeatureError(
                f"got a request for {k} tokens of unit {unit}, and {self.k} of each end were "
                f"kept: request at most {self.k}.",
                unit=unit,
            )
        t = self._arrays[f"{end}_t"].read(unit, unit + 1)[0, :k]
        value = self._arrays[f"{end}_value"].read(unit, unit + 1)[0, :k]
        there = t >= 0
        what = f"{self._folder}/{end}_t"
        check_span(0, int(t.max(initial=-1)) + 1, self.store.plan.n_tokens, what)
        return Peak(t[there], value[there])

    @cached_property
    def _arrays(self) -> dict[str, LazyArray]:
        specs = extreme_specs(self.n_units, self.k)
        objects, guard, folder = self.store.objects, self._guard, self._folder
        return {
            name: LazyArray(objects, replace(spec, path=f"{folder}/{name}"), guard)
            for name, spec in specs.items()
        }


def _kept(receipt: Receipt) -> int:
    """Return the number of tokens of each end that were kept, from a receipt."""
    k = receipt.run.get("k")
    if isinstance(k, int) and 1 <= k <= KEEP_MAX:
        return k
    raise FormatError(
        f"the receipt of {receipt.job} records k = {str(k)[:100]}, expected 1 to {KEEP_MAX} tokens "
        f"of each end. {CHANGED}",
        job=receipt.job,
    )


def open_units(store: StoreReader, hookpoint: str) -> Units:
    """Open the raw units of a hookpoint with their extremes.

    Parameters
    ----------
    store : StoreReader
        The store.
    hookpoint : str
        The hookpoint.

    Raises
    ------
    HookpointError
        The store has no such hookpoint.
    FeatureError
        The extremes are not computed yet.
    CorruptDataError
        They were computed, and their receipt is lost.
    """
    hookpoint = store.name_of(hookpoint)
    try:
        receipt = EXTREMES.receipts(store, hookpoint).read(0)
    except FileNotFoundError as error:
        job = EXTREMES.job(hookpoint)
        if is_finished(store.objects, job):
            what = f"the top and bottom tokens of {hookpoint}"
            raise lost_error(store.path, job, [0], what) from error
        raise FeatureError(
            f"{store.path}: the top and bottom tokens of {hookpoint} are not computed yet: "
            f"`actlas contexts {store.path} --hookpoint {hookpoint} --unit 0` computes them in one "
            "pass for all units.",
            hookpoint=hookpoint,
        ) from error
    return Units(store, hookpoint, receipt)
