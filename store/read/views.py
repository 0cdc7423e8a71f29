"""Views that group a store's arrays: row columns, activations, pooled rows, one document's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from actlas.store.display.html import table_html
from actlas.store.display.text import counted, did_you_mean, listed
from actlas.store.errors import NotExtractedError
from actlas.store.extras import explains_missing
from actlas.store.format.schema import Pool
from actlas.store.format.validation import check_codes
from actlas.store.shards.lazy_array import LazyArray
from actlas.store.shards.tensors import to_torch

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int64


class Rows:
    """The row columns: the token of each dense row, in the order of the rows.

    Parameters
    ----------
    columns : dict of str to LazyArray
        The columns by name, each of shape [rows].
    names : mapping of str to tuple of str, optional
        The names that the codes of each token column stand for.

    Attributes
    ----------
    token_id, doc_idx, pos_idx : LazyArray
        The token's id, its document, and its position in the document.
    special : LazyArray or None
        1 if the tokenizer added the token; None if the store keeps no special tokens.
    names : mapping of str to tuple of str
        ``rows["role"]`` holds indices into ``rows.names["role"]``, and -1 for no value.
    """

    def __init__(
        self, columns: dict[str, LazyArray], names: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self.columns = columns
        self.names = dict(names or {})
        self.token_id = columns["token_id"]
        self.doc_idx = columns["doc_idx"]
        self.pos_idx = columns["pos_idx"]
        self.special = columns.get("special")

    def __len__(self) -> int:
        return len(self.token_id)

    @overload
    def __getitem__(self, index: str) -> LazyArray: ...
    @overload
    def __getitem__(self, index: Any) -> dict[str, Any]: ...
    def __getitem__(self, index: Any) -> LazyArray | dict[str, Any]:
        """Return the column of that name, or every column at these rows.

        Raises
        ------
        KeyError
            There is no such column.
        """
        if isinstance(index, str):
            if index not in self.columns:
                near = did_you_mean(index, self.columns)
                have = ", ".join(self.columns)
                raise KeyError(f"column {index!r}: these rows have {have}.{near}")
            return self.columns[index]
        return {name: column[index] for name, column in self.columns.items()}

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'row')}: {', '.join(self.columns)}>"

    def _repr_html_(self) -> str:
        rows = [("rows", f"{len(self):,}")]
        for name, column in self.columns.items():
            names = self.names.get(name)
            rows.append((name, f"{column.dtype}, {listed(names)}" if names else str(column.dtype)))
        return table_html(rows)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.columns)

    @explains_missing
    def to_pandas(self, start: int = 0, stop: int | None = None) -> pd.DataFrame:
        """Return rows [start, stop) as a table, with token columns as categoricals."""
        import pandas as pd

        stop = len(self) if stop is None else min(stop, len(self))
        columns: dict[str, Any] = {
            name: column.read(start, stop) for name, column in self.columns.items()
        }
        for name, names in self.names.items():
            check_codes(columns[name], names, f"rows/{name}", lowest=-1)
            columns[name] = pd.Categorical.from_codes(
                columns[name].tolist(), categories=pd.Index(names, dtype=object)
            )
        return pd.DataFrame(columns, index=pd.RangeIndex(start, stop, name="row"))


class Activations(Mapping[str, LazyArray]):
    """A mapping of hookpoint to its activations, a lazy array [row, unit].

    Parameters
    ----------
    arrays : dict of str to LazyArray
        The activations by hookpoint.
    name_of : callable
        Returns the name of a stored hookpoint that is asked for by any of its names.
    """

    def __init__(self, arrays: dict[str, LazyArray], name_of: Callable[[str], str]) -> None:
        self._arrays = arrays
        self._name_of = name_of

    def __getitem__(self, hookpoint: str) -> LazyArray:
        return self._arrays[self._name_of(hookpoint)]

    def __contains__(self, hookpoint: object) -> bool:
        return hookpoint in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return f"<activations: {', '.join(self._arrays)}>"

    def _repr_html_(self) -> str:
        arrays = self._arrays.items()
        return table_html((n, f"{' x '.join(map(str, a.shape))} {a.dtype}") for n, a in arrays)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._arrays)


class DocumentActivations(Mapping[str, NDArray[Any]]):
    """A mapping of hookpoint to a document's activations [tokens, units], read when accessed.

    Parameters
    ----------
    arrays : Activations
        The store's activations.
    rows : ndarray of int64, shape [tokens]
        The row of each token of the document.
    """

    def __init__(self, arrays: Activations, rows: Int64[NDArray[np.int64], " tokens"]) -> None:
        self._arrays = arrays
        self._rows = rows

    def __getitem__(self, hookpoint: str) -> Float[NDArray[Any], "tokens units"]:
        return self._arrays[hookpoint].take(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def torch(self, hookpoint: str, *, dtype: Any = None, device: Any = None) -> Any:
        """Return a hookpoint's activations as a torch tensor [tokens, units].

        Parameters
        ----------
        hookpoint : str
            The hookpoint.
        dtype, device : optional
            See :meth:`actlas.store.shards.lazy_array.LazyArray.torch`.
        """
        return to_torch(self[hookpoint], dtype, device)

    def __repr__(self) -> str:
        return f"<activations of {counted(len(self._rows), 'token')}: {', '.join(self._arrays)}>"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._arrays)


class Pools(Mapping[str, LazyArray]):
    """A mapping of pool to one hookpoint's pooled rows, a lazy array [document, unit].

    Parameters
    ----------
    hookpoint : str
        The hookpoint's name, for messages.
    arrays : dict of str to LazyArray
        The pooled rows by pool: ``last``, ``mean`` or ``sum``.
    """

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

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._arrays)


class Pooled(Mapping[str, Pools]):
    """A mapping of hookpoint to its pooled rows: ``store.pooled["resid_post.3"]["mean"]``.

    A document's pooled row is that of its last kept token, or the mean or the sum over all its kept
    tokens, in float32. A document without tokens has a row of NaN.

    Parameters
    ----------
    path : str
        The store's folder or URL, for messages.
    arrays : mapping of (hookpoint, pool) to LazyArray
        The pooled rows [document, unit]; empty if the plan pools nothing.
    name_of : callable
        Returns the name of a stored hookpoint that is asked for by any of its names.
    """

    def __init__(
        self,
        path: str,
        arrays: Mapping[tuple[str, Pool], LazyArray],
        name_of: Callable[[str], str],
    ) -> None:
        self._path, self._name_of = path, name_of
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
        name = self._name_of(hookpoint)
        return Pools(name, self._pools[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def __repr__(self) -> str:
        return f"<pooled: {', '.join(self._pools)}>"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._pools)
