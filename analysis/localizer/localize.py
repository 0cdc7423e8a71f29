"""``actlas.localize``: the units that respond more to one condition than to another."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.localizer.contrast import Contrast, sides_of
from actlas.analysis.localizer.masks import Mask, MaskKey, Pool
from actlas.analysis.localizer.pooling import pooled_moments
from actlas.analysis.localizer.pooling_shard import ByGroup
from actlas.analysis.localizer.result import Localization
from actlas.analysis.localizer.stored_pools import source_of, stored_moments
from actlas.analysis.localizer.token_contrast import TokenSides
from actlas.analysis.statistics.welch import benjamini_hochberg, count_of, select, welch
from actlas.pipeline.hookpoints.globs import select_hookpoints
from actlas.store.display.text import counted, is_are
from actlas.store.errors import ConfigError, NonFiniteError, NotExtractedError
from actlas.store.extras import explains_missing
from actlas.store.format.schema import HookpointSpec, Plan
from actlas.store.ledger.receipts import EXTRACT, POOLED
from actlas.store.statistics.moments import Moments
from actlas.store.store import Store, as_store
from actlas.store.version import versions

OnNonfinite = Literal["refuse", "omit"]


@explains_missing
def localize(
    store: Store | str | os.PathLike[str],
    contrast: Contrast,
    *,
    pool: Pool = "last",
    signed: bool = False,
    top: str | int = "1%",
    hookpoints: str | Sequence[str] | None = None,
    on_nonfinite: OnNonfinite = "refuse",
    scheduler: str | None = None,
) -> Localization:
    """Test every unit for a difference between two conditions, and select the largest t.

    Every document with tokens is one sample: the activation of its last kept token, or the mean
    over its kept tokens, then (unless ``signed``) the absolute value. Samples are the store's
    pooled rows where it was extracted with that pooling; otherwise they are pooled from the rows of
    tokens. Each unit gets a two-sided Welch's t-test between the samples of the two conditions; the
    selected units have the largest t over all hookpoints together, hence positive selectivity.

    Parameters
    ----------
    store : Store or path
        A store with labels, whose shards are all extracted. It may be larger than memory.
    contrast : str or tuple of str
        ``"S:N"`` or ``("S", "N")``: the labels of the positive and of the negative condition.
        Documents with another label, or none, are left out. ``"role=user:assistant"`` or
        ``("role", "user", "assistant")``: values of a token column; ``"entity=PER:*"`` compares PER
        with all other tokens. Each document then gives one sample to every side that it has tokens
        of, pooled from these tokens.
    pool : {"last", "mean"}
        The pooling of a document's tokens: the last one, or their mean.
    signed : bool
        Whether samples keep their sign.
    top : str or int
        The units to select: ``"1%"`` of all tested units, or a count.
    hookpoints : str or sequence of str, optional
        Names or globs of the store's hookpoints, such as ``"resid_post.*"``; ``*`` matches no dot,
        ``**`` does. Default: all.
    on_nonfinite : {"refuse", "omit"}
        For units whose samples hold NaN or infinity: raise an error, or leave the unit untested
        (NaN in all results).
    scheduler : str, optional
        The Dask scheduler. Default: Dask's configuration, else threads.

    Returns
    -------
    Localization
        The test of every unit, and the mask of the selected ones.

    Raises
    ------
    ConfigError
        A label does not exist, the store has no labels, a condition has fewer than two documents
        with tokens, or ``top`` is neither a share nor a count.
    HookpointError
        No hookpoint matches.
    NotExtractedError
        Shards are missing.
    CorruptDataError
        The extraction was finished, and receipts are lost since; or stored bytes are damaged.
    NonFiniteError
        Samples hold NaN or infinity.

    References
    ----------
    AlKhamissi, Tuckute, Bosselut and Schrimpf, "The LLM Language Network", NAACL 2025
    (arXiv 2411.02280).

    Examples
    --------
    >>> found = actlas.localize("language.zarr", "S:N")            # doctest: +SKIP
    >>> found.table.nlargest(5, "t")                               # doctest: +SKIP
    >>> found.mask.save("mask.json")                               # doctest: +SKIP
    """
    store = as_store(store)
    _one_of("pool", pool, ("last", "mean"))
    _one_of("on_nonfinite", on_nonfinite, ("refuse", "omit"))
    specs = select_hookpoints(store, hookpoints)
    k = count_of(top, sum(spec.width for spec in specs))
    sides = sides_of(store, contrast)
    job = _source(store, sides.group, pool)
    names = [spec.name for spec in specs]
    if job == POOLED and not isinstance(sides.group, TokenSides):
        pooled = stored_moments(store, names, sides.group, pool=pool, signed=signed)
    else:
        pooled = pooled_moments(
            store, names, sides.group, pool=pool, signed=signed, scheduler=scheduler
        )
    positive, negative = (_joined(pooled, names, group) for group in (0, 1))
    counts = [float(condition.n_documents) for condition in sides.conditions]
    finite = (positive.n == counts[0]) & (negative.n == counts[1])
    if on_nonfinite == "refuse":
        _refuse_nonfinite(store, specs, finite)
    test = welch(positive, negative)
    # A unit with a value that is not finite was not measured on all documents.
    test = type(test)(*(np.where(finite, x, np.nan) for x in test))
    key = MaskKey.of(
        store.plan,
        store.plan_sha256,
        hookpoints=specs,
        positive=sides.conditions[0].label,
        negative=sides.conditions[1].label,
        pool=pool,
        signed=signed,
        top=str(top).strip(),
        column=sides.column,
        versions=_versions(store, job),
        store_dtype="float32" if job == POOLED else store.plan.dtype,
    )
    chosen = select(test.t, k)
    return Localization(
        store_path=store.path,
        mask=Mask.from_flat(key, chosen),
        k=k,
        t_threshold=float(test.t[chosen[-1]]) if len(chosen) else float("nan"),
        conditions=sides.conditions,
        n_ignored=sides.n_ignored,
        n_nonfinite_units=int((~finite).sum()),
        test=test,
        q=benjamini_hochberg(test.p),
        positive=positive,
        negative=negative,
        special_left_out=_special_left_out(store.plan),
    )


def _special_left_out(plan: Plan) -> bool:
    """Return whether the tokenizer adds tokens that have no row."""
    if plan.keep_special or plan.tokenizer is None:
        return False
    return bool(plan.tokenizer.prefix_ids or plan.tokenizer.suffix_ids)


def _source(store: Store, group: NDArray[np.int8] | TokenSides, pool: Pool) -> str:
    """Return the job whose rows are tested; all of its shards must be there."""
    if isinstance(group, TokenSides):
        store.rows  # noqa: B018 - raises where the store has only pooled rows
        job = EXTRACT
    else:
        job = source_of(store, pool)
    if n_missing := store.n_shards(job) - len(store.whole(job)):
        raise NotExtractedError(
            f"{store.path}: {n_missing} of {counted(store.n_shards(job), 'shard')} "
            f"{is_are(n_missing)} missing, and a test needs all of them: run `actlas extract` "
            "first.",
            missing=n_missing,
        )
    return job


def _joined(pooled: Mapping[str, ByGroup], names: Sequence[str], group: int) -> Moments:
    """Return the moments of a condition, concatenated over hookpoints."""
    parts = [moments for name in names if (moments := pooled[name][group]) is not None]
    fields = ("n", "mean", "m2", "min", "max")
    return Moments(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


def _refuse_nonfinite(
    store: Store, specs: Sequence[HookpointSpec], finite: NDArray[np.bool_]
) -> None:
    if finite.all():
        return
    edges = np.cumsum([0, *(spec.width for spec in specs)])
    counts = [int((~finite[a:b]).sum()) for a, b in pairwise(edges)]
    affected = [
        f"{spec.name} ({count} of {spec.width} units)"
        for spec, count in zip(specs, counts, strict=True)
        if count
    ]
    raise NonFiniteError(
        f"{store.path}: NaN or infinity in the pooled samples of {', '.join(affected[:8])}"
        f"{f' and {len(affected) - 8} more hookpoints' if len(affected) > 8 else ''}. Extract in "
        "a dtype with a larger range (float16 ends at 65,504), leave these hookpoints out, or give "
        "--on-nonfinite omit to leave these units untested.",
        units={spec.name: n for spec, n in zip(specs, counts, strict=True) if n},
    )


def _versions(store: Store, job: str) -> dict[str, str]:
    """Return the versions of the software of the extraction and of the test."""
    found = {name: version(name) for name in ("dask", "scipy")}
    found |= {name: versions()[name] for name in ("actlas", "numpy", "python")}
    receipts = [store.receipt(shard, job).versions for shard in range(store.n_shards(job))]
    for name in sorted({name for receipt in receipts for name in receipt}):
        used = sorted({receipt.get(name, "-") for receipt in receipts})
        found[f"extract.{name}"] = ", ".join(used)
    return dict(sorted(found.items()))


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: got {value!r}, expected {' or '.join(known)}", key=name)
