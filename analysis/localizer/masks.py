"""Masks: which units were selected, and all that they were selected from.

A mask file holds its whole key, not a name that stands for one: model, stimuli, windows,
hookpoints, pooling, sign, contrast and count. Nothing is looked up by a shortened key, so nothing
that was made with other settings can come back in its place.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from actlas.analysis.localizer.mask_key import MaskKey as MaskKey
from actlas.analysis.localizer.mask_key import Pool as Pool
from actlas.store.display.text import printable
from actlas.store.errors import CorruptDataError, FormatError, MaskError
from actlas.store.format.schema import ModelSpec
from actlas.store.format.sealing import FORMAT_VERSION, seal, summarize, unseal

FILE_NAME = "mask.json"

MAX_FILE_BYTES = 256 << 20

MAX_UNITS = 1 << 26
"""Of all hookpoints together: more than the largest models have, and what fits memory."""

_CHECKED = ("weights_sha256", "config_sha256", "architecture", "d_model", "n_layers")


class _MaskFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: Literal["actlas mask"] = "actlas mask"
    key: MaskKey
    seed: int | None
    units: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Mask:
    """Some units of some hookpoints, with the key of what they were selected from.

    Parameters
    ----------
    key : MaskKey
        What the units were selected from.
    units : mapping of hookpoint to tuple of int
        Ascending and distinct unit indices. Hookpoints without any are dropped, the others are
        kept in the key's order: equal masks are equal values.
    seed : int, optional
        Of a random mask.

    Raises
    ------
    MaskError
        A unit is out of range, twice there or out of order, or of a hookpoint that was not tested.

    Examples
    --------
    >>> mask = Mask.load("language/mask.json")                     # doctest: +SKIP
    >>> mask.n_units, mask.random(seed=1).n_units                  # doctest: +SKIP
    (15, 15)
    """

    key: MaskKey
    units: Mapping[str, tuple[int, ...]]
    seed: int | None = None

    def __post_init__(self) -> None:
        width = {hookpoint.name: hookpoint.width for hookpoint in self.key.hookpoints}
        if self.key.n_units > MAX_UNITS:
            raise _units_error(f"expected at most {MAX_UNITS:,} in all, got {self.key.n_units:,}")
        for name, units in self.units.items():
            if name not in width:
                raise _units_error(f"hookpoint {name!r} was not tested: {', '.join(width)}")
            if any(a >= b for a, b in pairwise(units)):
                raise _units_error(f"{name}: expected ascending, distinct units, got {units}")
            if units and not 0 <= units[0] <= units[-1] < width[name]:
                raise _units_error(
                    f"{name}: expected units in [0, {width[name]}), got {units[0]} to {units[-1]}"
                )
        kept = {name: tuple(self.units[name]) for name in width if self.units.get(name)}
        object.__setattr__(self, "units", kept)

    @classmethod
    def from_flat(cls, key: MaskKey, flat: NDArray[np.integer], *, seed: int | None = None) -> Mask:
        """Return a mask of units that are counted through all hookpoints of the key, in order."""
        edges = np.cumsum([0, *(hookpoint.width for hookpoint in key.hookpoints)])
        ordered = np.sort(flat)
        parts = np.split(ordered, np.searchsorted(ordered, edges[1:-1]))
        units = {
            hookpoint.name: tuple((part - edge).tolist())
            for hookpoint, part, edge in zip(key.hookpoints, parts, edges[:-1], strict=True)
        }
        return cls(key, units, seed)

    @property
    def n_units(self) -> int:
        """Units of the mask, over all hookpoints."""
        return sum(map(len, self.units.values()))

    def selected(self) -> NDArray[np.bool_]:
        """Return which units are in it; shape [units of all hookpoints], in the key's order."""
        found = []
        for hookpoint in self.key.hookpoints:
            inside = np.zeros(hookpoint.width, dtype=np.bool_)
            inside[list(self.units.get(hookpoint.name, ()))] = True
            found.append(inside)
        return np.concatenate(found)

    def random(self, seed: int) -> Mask:
        """Return a mask of as many units, drawn from all the units that are not in this one.

        Without replacement, by ``numpy.random.default_rng(seed)``, from every hookpoint of the key:
        the published control.

        Raises
        ------
        MaskError
            More than half of all units are in this mask: too few are left.
        """
        outside = np.flatnonzero(~self.selected())
        if len(outside) < self.n_units:
            raise MaskError(
                f"a random control needs {self.n_units:,} units outside the mask, and there are "
                f"{len(outside):,}: select fewer units.",
                field="units",
            )
        drawn = np.random.default_rng(seed).choice(outside, self.n_units, replace=False)
        return Mask.from_flat(self.key, drawn, seed=seed)

    def empty(self) -> Mask:
        """Return a mask of no units, with the same key."""
        return Mask(self.key, {})

    def check_model(self, spec: ModelSpec) -> None:
        """Raise where this mask was made for another model.

        Weights, configuration, architecture and sizes are compared. The id and the revision are
        not (the same weights may lie elsewhere), nor is the dtype that it computes in.

        Raises
        ------
        MaskError
            ``details["field"]`` is the first field that differs.
        """
        for field in _CHECKED:
            got, expected = getattr(spec, field), getattr(self.key, field)
            if got != expected:
                raise MaskError(
                    f"this mask was made for another model: {field} of {spec.id} is {got}, the "
                    f"mask's (of {self.key.model_id}) is {expected}. Give that model, or localize "
                    "on this one.",
                    field=field,
                    got=got,
                    expected=expected,
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as one line of JSON that ends with its own sha256.

        The file appears whole, under its name; one that lies there is replaced.
        """
        final = Path(path)
        record = _MaskFile(key=self.key, seed=self.seed, units=dict(self.units))
        staged = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            staged.write_bytes(seal(record))
            staged.replace(final)
        finally:
            staged.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mask:
        """Read a mask; ``path`` may be the folder that holds ``mask.json``.

        Raises
        ------
        MaskError
            There is none, or it is not the one that was written.
        """
        file = Path(path)
        if file.is_dir():
            file /= FILE_NAME
        try:
            record = unseal(_bytes_of(file), _MaskFile, str(file))
        except FileNotFoundError as error:
            raise _error(
                f"{file}: there is no mask here. `actlas localize` makes one", "path"
            ) from error
        except CorruptDataError as error:
            raise _error(
                f"{file}: expected a mask of actlas that ends with its own sha256; this file was "
                "changed or cut after it was written, or is none. Localize again",
                "sha256",
            ) from error
        except FormatError as error:
            reason = error.__cause__
            told = summarize(reason) if isinstance(reason, ValidationError) else str(error)
            raise _error(f"{file}: no mask that this actlas reads ({told})", "format") from error
        return cls(record.key, record.units, record.seed)

    def __repr__(self) -> str:
        return f"<{self._words()}>"

    def _repr_html_(self) -> str:
        return f"<div>{escape(self._words())}</div>"

    def _words(self) -> str:
        key = self.key
        column = f"{key.column}=" if key.column is not None else ""
        kind = "top units" if self.seed is None else f"random units, seed {self.seed}"
        return printable(
            f"mask of {self.n_units:,} of {key.n_units:,} units ({kind}) in {len(self.units)} of "
            f"{len(key.hookpoints)} hookpoints of {key.model_id}: {column}{key.positive} "
            f"against {key.negative}, {key.pool}, {'signed' if key.signed else 'absolute'}"
        )


def _bytes_of(file: Path) -> bytes:
    """Return the bytes of a plain file that can be a mask; a pipe would be waited for for ever."""
    try:
        found = file.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_FILE_BYTES:
            return file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _error(f"{file}: cannot be read ({error.strerror})", "path") from error
    raise _error(
        f"{file}: expected a file of at most {MAX_FILE_BYTES >> 20} MiB, as `actlas localize` "
        "writes it",
        "path",
    )


def _error(message: str, field: str) -> MaskError:
    return MaskError(f"{message}.", field=field)


def _units_error(message: str) -> MaskError:
    return _error(f"a mask's units: {message}", "units")
