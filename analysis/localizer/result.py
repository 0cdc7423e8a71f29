"""The result of a localization: the test of every unit and the mask, saved and displayed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actlas.analysis.figures import DPI, Figures, shown
from actlas.analysis.localizer.contrast import Condition
from actlas.analysis.localizer.masks import FILE_NAME, Mask
from actlas.analysis.statistics.welch import Welch
from actlas.store.display.text import counted, html_text, printable
from actlas.store.errors import StoreExistsError
from actlas.store.statistics.moments import Moments

if TYPE_CHECKING:
    import pandas as pd

Q_SIGNIFICANT = 0.05


class HookpointCounts(NamedTuple):
    """Counts of a hookpoint's units.

    Attributes
    ----------
    hookpoint : str
        The name of the hookpoint.
    n_units, n_selected, n_significant : int
        All units, the selected ones, and those with q below 0.05.
    """

    hookpoint: str
    n_units: int
    n_selected: int
    n_significant: int


@dataclass(frozen=True, eq=False)
class Localization:
    """The result of :func:`~actlas.analysis.localizer.localize.localize`.

    All arrays have the shape [units]: the units of all tested hookpoints, in the key's order.

    Attributes
    ----------
    store_path : str
        The path of the store.
    mask : Mask
        The selected units, with the key of the selection.
    k : int
        Number of units to select. ``n_selected`` is smaller only where fewer could be tested.
    t_threshold : float
        The smallest selected t; NaN where no unit is selected.
    conditions : tuple of Condition
        The positive and the negative side.
    n_ignored : int
        Number of documents on neither side.
    n_nonfinite_units : int
        Number of units left untested because a sample was NaN or infinite.
    test : Welch
        t, df, p and Cohen's d.
    q : ndarray of float64
        p adjusted by Benjamini and Hochberg over all tested units.
    positive, negative : Moments
        The moments of each condition's samples.
    special_left_out : bool
        Whether the tokenizer adds special tokens to each document that have no row in the store,
        and hence no part in the mean.
    """

    store_path: str
    mask: Mask
    k: int
    t_threshold: float
    conditions: tuple[Condition, Condition]
    n_ignored: int
    n_nonfinite_units: int
    test: Welch
    q: NDArray[np.float64]
    positive: Moments
    negative: Moments
    special_left_out: bool = False

    @property
    def n_selected(self) -> int:
        """Number of units in the mask."""
        return self.mask.n_units

    @property
    def n_units(self) -> int:
        """Number of units of all tested hookpoints."""
        return len(self.test.t)

    @property
    def n_significant(self) -> int:
        """Number of units with q below 0.05, of either sign."""
        return int((self.q < Q_SIGNIFICANT).sum())

    @property
    def n_selected_significant(self) -> int:
        """Number of selected units with q below 0.05, which prefer the positive side."""
        return int(((self.q < Q_SIGNIFICANT) & (self.test.t > 0) & self.selected).sum())

    @property
    def is_empty(self) -> bool:
        """Whether no unit with q below 0.05 prefers the positive side: the mask is of noise."""
        return not ((self.q < Q_SIGNIFICANT) & (self.test.t > 0)).any()

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that whoever uses the mask should know; most results have none."""
        notes = []
        a, b = (condition.label for condition in self.conditions)
        units = counted(self.n_units, "unit")
        noise = f"the mask holds the {self.n_selected:,} largest t of noise"
        if self.is_empty and self.n_significant:
            other = f"{self.n_significant:,} of {units} with q < {Q_SIGNIFICANT} prefer {b}"
            notes.append(f"nothing here prefers {a} ({other}): {noise}. See {b} against {a}.")
        elif self.is_empty:
            notes.append(
                f"nothing here: none of {units} has q < {Q_SIGNIFICANT}: {noise}. "
                "More documents, or another contrast, may show a difference."
            )
        if self.mask.key.pool == "mean" and self.special_left_out:
            notes.append(
                "the mean is over the text's tokens alone; the published localizer counts the "
                "special tokens too (BOS): to reproduce it, plan the store with --keep-special."
            )
        return tuple(notes)

    @cached_property
    def selected(self) -> NDArray[np.bool_]:
        """Whether each unit is selected."""
        return self.mask.selected()

    @cached_property
    def table(self) -> pd.DataFrame:
        """The results as a table with one row per unit, in the order of hookpoints and units.

        The columns are ``hookpoint``, ``unit``, ``t``, ``df``, ``p``, ``q``, ``cohen_d``;
        ``mean_pos``, ``var_pos``, ``n_pos`` and the same for ``neg`` (of the samples; the variance
        is unbiased, n counts finite samples); ``selected``.
        """
        import pandas as pd

        specs = self.mask.key.hookpoints
        columns: dict[str, Any] = {
            "hookpoint": np.repeat([s.name for s in specs], [s.width for s in specs]),
            "unit": np.concatenate([np.arange(s.width) for s in specs]),
            **dict(zip(("t", "df", "p"), self.test[:3], strict=True)),
            "q": self.q,
            "cohen_d": self.test.cohen_d,
        }
        for side, moments in (("pos", self.positive), ("neg", self.negative)):
            columns[f"mean_{side}"] = np.where(moments.n > 0, moments.mean, np.nan)
            columns[f"var_{side}"] = moments.variance
            columns[f"n_{side}"] = moments.n.astype(np.int64)
        return pd.DataFrame({**columns, "selected": self.selected})

    def counts(self) -> list[HookpointCounts]:
        """Return the number of selected and of significant units of each hookpoint."""
        rows, at = [], 0
        for spec in self.mask.key.hookpoints:
            part = slice(at, at + spec.width)
            significant = int((self.q[part] < Q_SIGNIFICANT).sum())
            rows.append(
                HookpointCounts(spec.name, spec.width, int(self.selected[part].sum()), significant)
            )
            at += spec.width
        return rows

    def summary(self) -> dict[str, Any]:
        """Return the result, without the values of single units, as plain values for JSON."""
        positive, negative = self.conditions
        chosen = self.test.cohen_d[self.selected]
        return {
            "store": self.store_path,
            "contrast": {"positive": positive._asdict(), "negative": negative._asdict()},
            "n_documents_ignored": self.n_ignored,
            "n_units": self.n_units,
            "n_units_tested": int((~np.isnan(self.test.t)).sum()),
            "n_units_nonfinite": self.n_nonfinite_units,
            "k": self.k,
            "n_selected": self.n_selected,
            "t_threshold": _number(self.t_threshold),
            "t_max": _number(np.max(self.test.t, where=~np.isnan(self.test.t), initial=-np.inf)),
            "median_cohen_d_selected": _number(np.median(chosen)) if len(chosen) else None,
            "n_significant": self.n_significant,
            "n_selected_significant": self.n_selected_significant,
            "q_significant": Q_SIGNIFICANT,
            "notes": list(self.notes),
            "hookpoints": [row._asdict() for row in self.counts()],
            "key": self.mask.key.model_dump(mode="json"),
        }

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        figures: str | Sequence[str] | Figures = "png",
        dpi: int = DPI,
    ) -> None:
        """Write units.csv, mask.json, summary.json and three pictures to a new or empty folder.

        Floats in ``units.csv`` round-trip exactly; with pandas, read them with
        ``float_precision="round_trip"``.

        Parameters
        ----------
        folder : path
            Created where it does not exist.
        figures : str or sequence of str
            Formats of the pictures: ``png``, ``svg``, ``pdf``, several of them, or ``none``.
        dpi : int
            Pixels per inch of the pictures.

        Raises
        ------
        StoreExistsError
            The folder is not empty; it is left as it is.
        ConfigError
            A format is not known, or ``dpi`` is out of range.
        """
        from actlas.analysis.localizer import plots

        wanted = figures if isinstance(figures, Figures) else Figures.parse(figures, dpi)
        where = Path(folder)
        if where.exists() and (not where.is_dir() or any(where.iterdir())):
            raise StoreExistsError(
                f"{where}: expected a new or empty folder; this one is left as it is. Give another "
                "folder.",
                path=str(where),
            )
        where.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(where / "units.csv", index=False, na_rep="nan", lineterminator="\n")
        text = json.dumps(self.summary(), indent=1, ensure_ascii=False, allow_nan=False)
        (where / "summary.json").write_text(text + "\n", encoding="utf-8")
        plots.save_all(self, where, wanted)
        self.mask.save(where / FILE_NAME)

    def __repr__(self) -> str:
        return "\n".join(map(printable, [f"<{self._words()}>", *self.notes]))

    def _words(self) -> str:
        a, b = self.conditions
        key = self.mask.key
        return (
            f"localization {a.label} ({counted(a.n_documents, 'document')}) against {b.label} "
            f"({b.n_documents:,}), {key.pool}, {'signed' if key.signed else 'absolute'}: "
            f"{self.n_selected:,} of {counted(self.n_units, 'unit')} selected, t >= "
            f"{shown(self.t_threshold)}; {self.n_significant:,} with q < {Q_SIGNIFICANT}"
        )

    def _repr_html_(self) -> str:
        head = "<tr><th>hookpoint</th><th>units</th><th>selected</th><th>q &lt; 0.05</th></tr>"
        rows = "".join(
            f"<tr><td>{html_text(row.hookpoint)}</td>"
            + "".join(f"<td style='text-align:right'>{value:,}</td>" for value in row[1:])
            + "</tr>"
            for row in self.counts()
        )
        notes = "".join(f"<p>{html_text(note)}</p>" for note in self.notes)
        return f"<div>{html_text(self._words())}{notes}<table>{head}{rows}</table></div>"


def _number(value: float) -> float | str:
    """Return a number for JSON, with infinity and NaN as strings."""
    return float(value) if math.isfinite(value) else str(float(value))
