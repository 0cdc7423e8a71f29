"""How a store's arrays are grouped for a reader: rows, activations, one document's activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlas.store.errors import HookpointError
from actlas.store.lazy import LazyArray

if TYPE_CHECKING:
    import pandas as pd


class Rows:
    """The columns that say which row is which, in the order of the dense rows.

    Attributes
    ----------
    token_id, doc_idx, pos_idx : LazyArray
        The token's id, its document, its place in the document. ``special`` beside them in a store
        that keeps special tokens.
    """

    def __init__(self, columns: dict[str, LazyArray]) -> None:
        self.columns = columns
        self.token_id = columns["token_id"]
        self.doc_idx = columns["doc_idx"]
        self.pos_idx = columns["pos_idx"]
        self.special = columns.get("special")

    def __len__(self) -> int:
        return len(self.token_id)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Return every column at ``index``."""
        return {name: column[index] for name, column in self.columns.items()}

    def __repr__(self) -> str:
        return f"<{len(self):,} rows: {', '.join(self.columns)}>"

    def to_pandas(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows [start, stop) as a table."""
        import pandas as pd

        stop = len(self) if stop is None else min(stop, len(self))
        columns = {name: column.read(start, stop) for name, column in self.columns.items()}
        return pd.DataFrame(columns, index=pd.RangeIndex(start, stop, name="row"))


class Activations(Mapping[str, LazyArray]):
    """The hookpoints of a store, each with its lazy array of activations [row, unit]."""

    def __init__(self, arrays: dict[str, LazyArray]) -> None:
        self._arrays = arrays

    def __getitem__(self, hookpoint: str) -> LazyArray:
        if hookpoint not in self._arrays:
            raise HookpointError(
                f"hookpoint {hookpoint!r}: this store has {', '.join(self._arrays)}.",
                hookpoint=hookpoint,
            )
        return self._arrays[hookpoint]

    def __contains__(self, hookpoint: object) -> bool:
        return hookpoint in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"<activations: {', '.join(self._arrays)}>"


class DocumentActivations(Mapping[str, NDArray[Any]]):
    """A document's activations, read by hookpoint when asked for."""

    def __init__(self, arrays: Activations, rows: NDArray[np.int64]) -> None:
        self._arrays = arrays
        self._rows = rows

    def __getitem__(self, hookpoint: str) -> NDArray[Any]:
        return self._arrays[hookpoint].take(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"<activations of {len(self._rows)} tokens: {', '.join(self._arrays)}>"
