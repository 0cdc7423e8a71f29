"""Comparison of stores: which arrays must be equal, and which may differ by rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from compatibility import commands, inputs, plain_reader

Arrays = dict[str, NDArray[Any]]
COMPUTED = ("activations", "pooled", "statistics", "features", "extremes")
"""Folders of computed values, whose last bits depend on the machine."""


def decoded(store: Path, *, derived: bool = True) -> Arrays:
    """Decode every array of a store whose shards are all done."""
    found = plain_reader.arrays(store, "rows", "activations", "pooled", "statistics", "documents")
    if derived and plain_reader.has(store, "indexed.codes"):
        codes = plain_reader.features(store, "codes")
        found |= {f"features/codes/{key}": values for key, values in codes.items()}
    if derived and plain_reader.has(store, f"extremes.{commands.UNITS}"):
        ends = plain_reader.extremes(store, commands.UNITS)
        found |= {f"extremes/{commands.UNITS}/{key}": values for key, values in ends.items()}
    return found


def check_alike(found: Arrays, truth: Arrays) -> None:
    """Raise where two stores differ: planned values at all, computed values beyond rounding."""
    assert found.keys() == truth.keys()
    for key, values in truth.items():
        if key.split("/")[0] not in COMPUTED and key != "rows/loss":
            assert plain_reader.digest(found[key]) == plain_reader.digest(values), key
        elif key.startswith(("activations/", "pooled/")) or key == "rows/loss":
            check_close(found[key], values, key)
    check_derived(found)


def check_derived(found: Arrays) -> None:
    """Raise where derived data are not those of the store's own rows, as numpy computes them.

    That is statistics, feature activations, their index, and the extremes of units. The sparse
    autoencoder lies in the folder ``codes`` of the working directory.
    """
    _check_statistics(found)
    if "features/codes/codes" in found:
        _check_codes(found)
    if f"extremes/{commands.UNITS}/top_t" in found:
        _check_extremes(found)


def check_close(found: NDArray[Any], truth: NDArray[Any], key: str) -> None:
    """Raise where values differ by more than the last bit of their dtype, or of a float32 sum."""
    assert (found.dtype, found.shape) == (truth.dtype, truth.shape), key
    step = {"bfloat16": 2**-7, "float16": 2**-10}.get(truth.dtype.name, 1e-4)
    np.testing.assert_allclose(
        found.astype(np.float64), truth.astype(np.float64), rtol=step, atol=1e-4, err_msg=key
    )


def _check_statistics(found: Arrays) -> None:
    for key in [key for key in found if key.startswith("statistics/")]:
        rows = found[f"activations/{key.partition('/')[2]}"].astype(np.float64)
        start = 0
        for table in found[key]:
            n = int(table[0, 0])
            part = rows[start : start + n]
            start += n
            np.testing.assert_allclose(table[1], part.mean(axis=0), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(table[2], n * part.var(axis=0), rtol=1e-9, atol=1e-12)
            assert (table[3] == part.min(axis=0)).all() and (table[4] == part.max(axis=0)).all()
        assert start == len(rows), key


def by_token(found: Arrays, hookpoint: str) -> NDArray[Any]:
    """Return a hookpoint's rows in document order."""
    rows = found[f"activations/{hookpoint}"]
    ordered = np.empty_like(rows)
    ordered[found["documents/start"][found["rows/doc_idx"]] + found["rows/pos_idx"]] = rows
    return ordered


def _check_codes(found: Arrays) -> None:
    w = load_file("codes/sae_weights.safetensors")
    x = by_token(found, inputs.SAE_HOOKPOINT).astype(np.float64)
    codes = np.maximum((x - w["b_dec"]) @ w["W_enc"].astype(np.float64) + w["b_enc"], 0)
    own = found["features/codes/codes"]
    np.testing.assert_allclose(own, codes, rtol=2**-7, atol=1e-5)
    n_fired = (own > 0).sum(axis=0)
    assert (found["features/codes/count"] == n_fired).all()
    first = 0
    for feature, n in enumerate(n_fired.tolist()):
        fired = np.flatnonzero(own[:, feature])
        falling = fired[np.lexsort((fired, -own[fired, feature]))]
        assert (found["features/codes/t"][first : first + n] == falling).all()
        assert (found["features/codes/value"][first : first + n] == own[falling, feature]).all()
        first += n
    assert first == len(found["features/codes/t"])
    np.testing.assert_allclose(found["features/codes/sum"], own.sum(axis=0, dtype=np.float64))
    assert (found["features/codes/max"] == own.max(axis=0)).all()


def _check_extremes(found: Arrays) -> None:
    tokens = np.flatnonzero(found["documents/special"] == 0)
    rows = by_token(found, commands.UNITS)[tokens].astype(np.float32)
    for end, sign in (("top", -1), ("bottom", 1)):
        where = found[f"extremes/{commands.UNITS}/{end}_t"]
        value = found[f"extremes/{commands.UNITS}/{end}_value"]
        for unit in range(rows.shape[1]):
            order = np.lexsort((tokens, sign * rows[:, unit]))[: where.shape[1]]
            assert (where[unit] == tokens[order]).all()
            assert (value[unit] == rows[order, unit]).all()
