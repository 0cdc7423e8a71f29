"""How pictures are written: their formats and resolution, and what their words have in common."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actlas.store.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

DPI, DPI_MIN, DPI_MAX = 150, 30, 1200

_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""The same picture gives the same file."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The formats and the resolution of pictures.

    Attributes
    ----------
    formats : tuple of str
        Of ``png``, ``svg`` and ``pdf``; empty for no picture.
    dpi : int
        Pixels per inch of a PNG, and of what is drawn as pixels in the other formats.
    """

    formats: tuple[str, ...] = ("png",)
    dpi: int = DPI

    @classmethod
    def parse(cls, formats: str | Sequence[str] = "png", dpi: int = DPI) -> Figures:
        """Return the figures that were asked for.

        Parameters
        ----------
        formats : str or sequence of str
            Names separated by commas, or a sequence of names; ``none`` for no picture.
        dpi : int
            Pixels per inch.

        Raises
        ------
        ConfigError
            A format is not known, or ``dpi`` is out of range.

        Examples
        --------
        >>> Figures.parse("png,svg").names("layers")
        ['layers.png', 'layers.svg']
        """
        given = formats.split(",") if isinstance(formats, str) else list(formats)
        wanted = [name.strip().lower().lstrip(".") for name in given if name.strip()]
        if wanted == ["none"]:
            wanted = []
        elif not wanted or set(wanted) - set(FORMATS):
            known = f"{', '.join(FORMATS)}, several of them separated by commas, or none"
            raise ConfigError(
                f"--figures: got {','.join(given)!r}, expected {known}.", field="figures"
            )
        if not DPI_MIN <= dpi <= DPI_MAX:
            raise ConfigError(
                f"--dpi: got {dpi}, expected {DPI_MIN} to {DPI_MAX:,} pixels per inch.", field="dpi"
            )
        return cls(tuple(dict.fromkeys(wanted)), dpi)

    def names(self, stem: str) -> list[str]:
        """Return the names of a picture's files.

        Parameters
        ----------
        stem : str
            The name without suffix.
        """
        return [f"{stem}.{name}" for name in self.formats]

    def save(self, figure: Figure, folder: Path, stem: str) -> None:
        """Write a picture in each format.

        Parameters
        ----------
        figure : Figure
            The picture.
        folder : Path
            An existing folder.
        stem : str
            The name without suffix.
        """
        import matplotlib

        # Text in a PDF stays text; the ids of an SVG do not change from run to run.
        with (
            matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": stem}),
            warnings.catch_warnings(),
        ):
            # Characters that the font lacks are drawn as boxes; the table has the whole label.
            warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
            for name, file in zip(self.formats, self.names(stem), strict=True):
                metadata = _UNDATED.get(name)
                figure.savefig(folder / file, dpi=self.dpi, format=name, metadata=metadata)


PNG = Figures()
"""One PNG of each picture."""


def title_name(name: str) -> str:
    """Return a model or a corpus as a title names it: without the folders of a machine.

    Names of the Hugging Face hub, URLs and what actlas brings along stay whole.

    Parameters
    ----------
    name : str
        An id or a path.

    Examples
    --------
    >>> title_name("/data/models/stories260K/"), title_name("EleutherAI/pythia-70m")
    ('stories260K', 'EleutherAI/pythia-70m')
    >>> title_name("../corpus/a.jsonl"), title_name("s3://bucket/a.jsonl")
    ('a.jsonl', 's3://bucket/a.jsonl')
    """
    if re.match(r"[a-z][a-z0-9+-]+:", name) and not name.startswith("file:"):
        return name
    parts = [part for part in re.split(r"[/\\]", name) if part]
    of_hub = len(parts) == 2 and name == "/".join(parts) and not parts[0].startswith((".", "~"))
    return name if of_hub or len(parts) < 2 else parts[-1]


def shown(value: float) -> str:
    """Return a number as pictures, tables and messages show it: t, an effect size.

    >>> shown(4.5678), shown(-0.5), shown(1234.5)
    ('4.57', '-0.50', '1,234.50')
    """
    return f"{value:,.2f}"
