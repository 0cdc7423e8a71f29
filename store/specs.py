"""Every array of a store, from its plan alone. Pure: nothing is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from actlas.store import layout
from actlas.store.arrays import COLUMN_COMPRESSION, ArraySpec, column
from actlas.store.dtypes import numpy_dtype
from actlas.store.schema import HookpointSpec, Plan

DOCUMENT_SHARD_ROWS = 1 << 20
TOKEN_SHARD_ROWS = 1 << 22
TEXT_SHARD_BYTES = 1 << 26
TEXT_CHUNK_BYTES = 1 << 16

STATISTICS = ("n", "mean", "m2", "min", "max")
"""Along axis 1 of a statistics array; ``n`` counts the finite values."""


@dataclass(frozen=True)
class StoreArrays:
    """The arrays that a plan gives, by group.

    Parameters
    ----------
    plan : Plan
        The frozen plan.
    label_names, source_names : tuple of str
        What the codes of ``documents/label`` and ``documents/source`` mean; they lie in the
        arrays' attributes.
    """

    plan: Plan
    label_names: tuple[str, ...] | None = None
    source_names: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> dict[str, ArraySpec]:
        """The columns that say which row is which."""
        dtypes = {"token_id": "int32", "doc_idx": "int64", "pos_idx": "int32"}
        if self.plan.keep_special:
            dtypes["special"] = "int8"
        n, shard_rows = self.plan.n_tokens, self.plan.shard_rows
        return {
            name: column(f"rows/{name}", n, dtype, shard_rows, "row")
            for name, dtype in dtypes.items()
        }

    def activation(self, hookpoint: HookpointSpec) -> ArraySpec:
        """Return the array of dense activations of one hookpoint."""
        plan = self.plan
        row_bytes = hookpoint.width * numpy_dtype(plan.dtype).itemsize
        return ArraySpec(
            path=f"activations/{hookpoint.name}",
            shape=(plan.n_tokens, hookpoint.width),
            dtype=plan.dtype,
            shard_rows=plan.shard_rows,
            chunk_rows=layout.chunk_rows(row_bytes, plan.shard_rows),
            compression=plan.compression,
            dimensions=("row", self.unit_dimension(hookpoint.width)),
        )

    def statistic(self, hookpoint: HookpointSpec) -> ArraySpec:
        """Return the statistics array of one hookpoint: a chunk per shard of activations."""
        return ArraySpec(
            path=f"statistics/{hookpoint.name}",
            shape=(self.plan.n_shards, len(STATISTICS), hookpoint.width),
            dtype="float64",
            shard_rows=1,
            chunk_rows=1,
            compression=COLUMN_COMPRESSION,
            dimensions=("shard", "statistic", self.unit_dimension(hookpoint.width)),
            attributes={"statistics": list(STATISTICS)},
        )

    def unit_dimension(self, width: int) -> str:
        """Name the unit axis: ``unit`` at d_model's width, else ``unit_<width>``.

        xarray refuses a group in which one dimension has two lengths.
        """
        return "unit" if width == self.plan.model.d_model else f"unit_{width}"

    @cached_property
    def activations(self) -> dict[str, ArraySpec]:
        """The dense activations by hookpoint, in the plan's order."""
        return {h.name: self.activation(h) for h in self.plan.hookpoints}

    @cached_property
    def statistics(self) -> dict[str, ArraySpec]:
        """The statistics by hookpoint, in the plan's order."""
        return {h.name: self.statistic(h) for h in self.plan.hookpoints}

    @cached_property
    def documents(self) -> dict[str, ArraySpec]:
        """Text, tokens and origin of every document, in document order."""
        plan = self.plan
        specs = {
            name: self._document_column(name, plan.n_documents + 1, "int64", "document_edge")
            for name in ("start", "text_start")
        }
        for name, dtype in {"char_stop": "int32", "source": "int32", "record": "int64"}.items():
            specs[name] = self._document_column(name, plan.n_documents, dtype, "document")
        specs["source"].attributes["names"] = list(self.source_names)
        if self.label_names is not None:
            specs["label"] = self._document_column("label", plan.n_documents, "int32", "document")
            specs["label"].attributes["names"] = list(self.label_names)
        tokens = {"token_id": "int32", "char_start": "int32"}
        if plan.keep_special:
            tokens["special"] = "int8"
        for name, dtype in tokens.items():
            specs[name] = column(
                f"documents/{name}", plan.n_tokens, dtype, TOKEN_SHARD_ROWS, "token"
            )
        specs["text"] = ArraySpec(
            path="documents/text",
            shape=(plan.n_text_bytes,),
            dtype="uint8",
            shard_rows=TEXT_SHARD_BYTES,
            chunk_rows=TEXT_CHUNK_BYTES,
            compression=COLUMN_COMPRESSION,
            dimensions=("byte",),
        )
        return specs

    def _document_column(self, name: str, n: int, dtype: str, dimension: str) -> ArraySpec:
        return column(f"documents/{name}", n, dtype, DOCUMENT_SHARD_ROWS, dimension)

    def all(self) -> dict[str, ArraySpec]:
        """Every array by its path."""
        groups = (self.rows, self.activations, self.statistics, self.documents)
        return {spec.path: spec for group in groups for spec in group.values()}
