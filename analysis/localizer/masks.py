"""Masks: selected units, with the key of everything that the selection depends on.

A mask file holds its whole key: model, stimuli, windows, hookpoints, pooling, sign, contrast and
count. Nothing is looked up by a shortened key, so a mask of other settings cannot be returned by
mistake.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from actlas.analysis.localizer.mask_key import MaskKey as MaskKey
from actlas.analysis.localizer.mask_key import Pool as Pool
from actlas.store.display.text import counted, html_text, printable
from actlas.store.errors import CorruptDataError, FormatError, MaskError
from actlas.store.format.schema import ModelSpec
from actlas.store.format.sealing import FORMAT_VERSION, seal, summarize, unseal
from actlas.store.objects.faults import writing
from actlas.store.objects.leftovers import staged_file

FILE_NAME = "mask.json"

MAX_FILE_BYTES = 256 << 20

MAX_UNITS = 1 << 26
"""Largest number of units of all hookpoints: more than the largest models have."""

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
    """Selected units of hookpoints, with the key of the selection.

    Parameters
    ----------
    key : MaskKey
        Everything that the selection depends on.
    units : mapping of hookpoint to tuple of int
        Ascending, distinct indices of units. Hookpoints without units are dropped, the others are
        kept in the key's order: equal masks compare equal.
    seed : int, optional
        The seed of a random mask.

    Raises
    ------
    MaskError
        A unit is out of range, repeated or out of order, or of a hookpoint that was not tested.

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
        """Return a mask from flat indices of units.

        Parameters
        ----------
        key : MaskKey
            The key of the mask.
        flat : ndarray of int, shape [units]
            Indices into the units of all hookpoints of the key, concatenated in its order.
        seed : int, optional
            The seed of a random mask.
        """
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
        """Number of units of the mask, over all hookpoints."""
        return sum(map(len, self.units.values()))

    def selected(self) -> NDArray[np.bool_]:
        """Return whether each unit is in the mask; shape [units of all hookpoints]."""
        found = []
        for hookpoint in self.key.hookpoints:
            inside = np.zeros(hookpoint.width, dtype=np.bool_)
            inside[list(self.units.get(hookpoint.name, ()))] = True
            found.append(inside)
        return np.concatenate(found)

    def random(self, seed: int) -> Mask:
        """Return a random control: as many units, drawn from the units outside this mask.

        Units are drawn without replacement from all hookpoints of the key, by
        ``numpy.random.default_rng(seed)``: the published control.

        Parameters
        ----------
        seed : int
            The seed of the draw.

        Raises
        ------
        MaskError
            More than half of all units are in this mask, so too few are left.
        """
        outside = np.flatnonzero(~self.selected())
        if len(outside) < self.n_units:
            raise MaskError(
                f"a random control needs {counted(self.n_units, 'unit')} outside the mask, which "
                f"leaves {len(outside):,}: select fewer units.",
                field="units",
            )
        drawn = np.random.default_rng(seed).choice(outside, self.n_units, replace=False)
        return Mask.from_flat(self.key, drawn, seed=seed)

    def empty(self) -> Mask:
        """Return a mask of no units, with the same key."""
        return Mask(self.key, {})

    def check_model(self, spec: ModelSpec) -> None:
        """Check that this mask was made for a model.

        Weights, configuration, architecture and sizes are compared. Id, revision and compute dtype
        may differ: the same weights may be stored elsewhere.

        Parameters
        ----------
        spec : ModelSpec
            The model to check.

        Raises
        ------
        MaskError
            The models differ; ``details["field"]`` is the first field that does.
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
        """Write the mask as one line of JSON that ends with its own SHA-256.

        The file is replaced atomically.

        Parameters
        ----------
        path : path
            The file to write.

        Raises
        ------
        RunFaultError
            The disk is full or fails; a ``PlaceError`` where the file cannot be there at all.
        """
        final = Path(path)
        record = _MaskFile(key=self.key, seed=self.seed, units=dict(self.units))
        with writing(final), staged_file(final) as staged:
            staged.write_bytes(seal(record))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mask:
        """Read a mask.

        Parameters
        ----------
        path : path
            A mask file, or the folder that holds ``mask.json``.

        Raises
        ------
        MaskError
            The file does not exist, is not a mask, or was changed after it was written.
        """
        file = Path(path)
        if file.is_dir():
            file /= FILE_NAME
        try:
            record = unseal(_bytes_of(file), _MaskFile, str(file))
        except FileNotFoundError as error:
            what = "no such mask"
            if file.parent == Path(path):
                what = f"the folder has no {FILE_NAME}"
            raise _error(f"{path}: {what}. `actlas localize` makes one", "path") from error
        except CorruptDataError as error:
            raise _error(
                f"{file}: expected a mask that ends with its own sha256; this file is not "
                "a mask, or was changed or truncated after it was written. Localize again",
                "sha256",
            ) from error
        except FormatError as error:
            reason = error.__cause__
            told = summarize(reason) if isinstance(reason, ValidationError) else str(error)
            raise _error(
                f"{file}: not a mask that this version reads ({told})", "format"
            ) from error
        return cls(record.key, record.units, record.seed)

    def __repr__(self) -> str:
        return f"<{self._words()}>"

    def _repr_html_(self) -> str:
        return f"<div>{html_text(self._words())}</div>"

    def _words(self) -> str:
        key = self.key
        column = f"{key.column}=" if key.column is not None else ""
        kind = "top units" if self.seed is None else f"random units, seed {self.seed}"
        return printable(
            f"mask of {self.n_units:,} of {counted(key.n_units, 'unit')} ({kind}) in "
            f"{len(self.units)} of {counted(len(key.hookpoints), 'hookpoint')} of {key.model_id}: "
            f"{column}{key.positive} against {key.negative}, {key.pool}, "
            f"{'signed' if key.signed else 'absolute'}"
        )


def _bytes_of(file: Path) -> bytes:
    """Return the bytes of a plain file; reading a pipe would wait for ever."""
    try:
        found = file.stat()
        if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_FILE_BYTES:
            return file.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _error(f"{file}: cannot be read ({error.strerror})", "path") from error
    raise _error(
        f"{file}: expected a plain file of at most {MAX_FILE_BYTES >> 20} MiB, as written by "
        "`actlas localize`",
        "path",
    )


def _error(message: str, field: str) -> MaskError:
    return MaskError(f"{message}.", field=field)


def _units_error(message: str) -> MaskError:
    return _error(f"a mask's units: {message}", "units")
