"""``StoreArrays``: the specs of every array of a store, computed from its plan without I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from actlas.store.format import layout
from actlas.store.format.array_spec import COLUMN_COMPRESSION, ArraySpec, column
from actlas.store.format.dtypes import numpy_dtype
from actlas.store.format.schema import HookpointSpec, Plan, Pool
from actlas.store.statistics.shard import STATISTICS

DOCUMENT_SHARD_ROWS = 1 << 20
"""Elements per shard of a column over documents."""

TOKEN_SHARD_ROWS = 1 << 22
"""Elements per shard of a column over the corpus' tokens."""

TEXT_SHARD_BYTES = 1 << 26
"""Bytes per shard of the documents' text, and of their images."""

TEXT_CHUNK_BYTES = 1 << 16
"""Bytes per inner chunk of the documents' text."""

IMAGE_CHUNK_BYTES = 1 << 20
"""Bytes per inner chunk of the documents' images."""

LOSS = "loss"
"""The column of rows that the model computes; all other columns follow from the plan."""


@dataclass(frozen=True)
class StoreArrays:
    """The specs of a plan's arrays, by group.

    Parameters
    ----------
    plan : Plan
        The frozen plan.
    label_names, source_names : tuple of str
        The names that the codes of ``documents/label`` and ``documents/source`` stand for; the
        arrays' attributes hold them. ``label_names`` is None if documents have no labels.
    token_column_names : mapping of str to tuple of str
        The names that the codes of each token column stand for.
    statistics_names : tuple of str
        The statistics in a statistics array; earlier versions had fewer.
    """

    plan: Plan
    label_names: tuple[str, ...] | None = None
    source_names: tuple[str, ...] = ()
    token_column_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    statistics_names: tuple[str, ...] = STATISTICS

    @cached_property
    def rows(self) -> dict[str, ArraySpec]:
        """The row columns by name; empty if the plan has only pooled rows."""
        if not self.plan.dense:
            return {}
        dtypes = {"token_id": "int32", "doc_idx": "int64", "pos_idx": "int32"}
        if self.plan.keep_special:
            dtypes["special"] = "int8"
        dtypes |= dict.fromkeys(self.plan.token_columns, "int32")
        n, shard_rows = self.plan.n_tokens, self.plan.shard_rows
        specs = {
            name: column(f"rows/{name}", n, dtype, shard_rows, "row", self._token_names(name))
            for name, dtype in dtypes.items()
        }
        if self.plan.with_loss:
            specs[LOSS] = column(f"rows/{LOSS}", n, "float32", shard_rows, "row")
        return specs

    def activation(self, hookpoint: HookpointSpec) -> ArraySpec:
        """Return the spec of one hookpoint's dense activations [row, unit]."""
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
        """Return the spec of one hookpoint's statistics [shard, statistic, unit]."""
        return ArraySpec(
            path=f"statistics/{hookpoint.name}",
            shape=(self.plan.n_shards, len(self.statistics_names), hookpoint.width),
            dtype="float64",
            shard_rows=1,
            chunk_rows=1,
            compression=COLUMN_COMPRESSION,
            dimensions=("shard", "statistic", self.unit_dimension(hookpoint.width)),
            attributes={"statistics": list(self.statistics_names)},
        )

    def unit_dimension(self, width: int) -> str:
        """Return the unit axis' name: ``unit`` if its length is d_model, else ``unit_<width>``.

        xarray rejects a group in which one dimension has two lengths.
        """
        return "unit" if width == self.plan.model.d_model else f"unit_{width}"

    @cached_property
    def activations(self) -> dict[str, ArraySpec]:
        """The dense activations by hookpoint, in the plan's order; empty without dense rows."""
        hookpoints = self.plan.hookpoints if self.plan.dense else ()
        return {h.name: self.activation(h) for h in hookpoints}

    @cached_property
    def statistics(self) -> dict[str, ArraySpec]:
        """The statistics by hookpoint, in the plan's order; empty without dense rows."""
        hookpoints = self.plan.hookpoints if self.plan.dense else ()
        return {h.name: self.statistic(h) for h in hookpoints}

    @cached_property
    def pooled(self) -> dict[tuple[str, Pool], ArraySpec]:
        """The pooled rows [document, unit] by (hookpoint, pool); all have the same shards."""
        plan = self.plan
        row_bytes = [4 * hookpoint.width for hookpoint in plan.hookpoints]
        documents = layout.pooled_shard_documents(
            plan.n_documents, plan.n_tokens, plan.shard_rows, sum(row_bytes) * len(plan.pools)
        )
        return {
            (hookpoint.name, pool): ArraySpec(
                path=f"pooled/{hookpoint.name}/{pool}",
                shape=(plan.n_documents, hookpoint.width),
                dtype="float32",
                shard_rows=documents,
                chunk_rows=layout.chunk_rows(n_bytes, documents),
                compression=plan.compression,
                dimensions=("document", self.unit_dimension(hookpoint.width)),
            )
            for hookpoint, n_bytes in zip(plan.hookpoints, row_bytes, strict=True)
            for pool in plan.pools
        }

    @property
    def n_pooled_shards(self) -> int:
        """The number of shards of each pooled array; 0 if the plan pools nothing."""
        return next((spec.n_shards for spec in self.pooled.values()), 0)

    @property
    def groups(self) -> tuple[str, ...]:
        """The paths of the groups that contain the arrays."""
        dense = ("rows", "activations", "statistics") if self.plan.dense else ()
        above = [f"pooled/{hookpoint.name}" for hookpoint in self.plan.hookpoints]
        return (*dense, "documents", *(("pooled", *above) if self.plan.pools else ()))

    @cached_property
    def documents(self) -> dict[str, ArraySpec]:
        """The columns of documents and tokens by name: text, tokens, images, labels and sources."""
        plan = self.plan
        specs = {
            name: self._document_column(name, plan.n_documents + 1, "int64", "document_edge")
            for name in ("start", "text_start")
        }
        per_document: list[tuple[str, str, Sequence[str] | None]] = [
            ("char_stop", "int32", None),
            ("source", "int32", self.source_names),
            ("record", "int64", None),
        ]
        if self.label_names is not None:
            per_document.append(("label", "int32", self.label_names))
        for name, dtype, names in per_document:
            specs[name] = self._document_column(name, plan.n_documents, dtype, "document", names)
        tokens = {"token_id": "int32", "char_start": "int32"}
        if plan.keep_special:
            tokens["special"] = "int8"
        tokens |= dict.fromkeys(plan.token_columns, "int32")
        for name, dtype in tokens.items():
            path, names = f"documents/{name}", self._token_names(name)
            specs[name] = column(path, plan.n_tokens, dtype, TOKEN_SHARD_ROWS, "token", names)
        specs["text"] = ArraySpec(
            path="documents/text",
            shape=(plan.n_text_bytes,),
            dtype="uint8",
            shard_rows=TEXT_SHARD_BYTES,
            chunk_rows=TEXT_CHUNK_BYTES,
            compression=COLUMN_COMPRESSION,
            dimensions=("byte",),
        )
        if plan.processor is not None:
            n_edges = plan.n_documents + 1
            specs["image_start"] = self._document_column(
                "image_start", n_edges, "int64", "document_edge"
            )
            specs["image"] = ArraySpec(
                path="documents/image",
                shape=(plan.n_image_bytes,),
                dtype="uint8",
                shard_rows=TEXT_SHARD_BYTES,
                chunk_rows=IMAGE_CHUNK_BYTES,
                compression=COLUMN_COMPRESSION,
                dimensions=("image_byte",),
            )
        return specs

    def _token_names(self, name: str) -> Sequence[str] | None:
        """Return the names of a token column's codes, or None if the column holds no codes."""
        return self.token_column_names.get(name, ()) if name in self.plan.token_columns else None

    def _document_column(
        self, name: str, n: int, dtype: str, dimension: str, names: Sequence[str] | None = None
    ) -> ArraySpec:
        return column(f"documents/{name}", n, dtype, DOCUMENT_SHARD_ROWS, dimension, names)

    def in_shards(self, *, pooled: bool) -> tuple[ArraySpec, ...]:
        """Return the arrays of which each shard of pooled rows, or of token rows, has an object.

        Parameters
        ----------
        pooled : bool
            Whether the shards are those of pooled rows.
        """
        if pooled:
            return tuple(self.pooled.values())
        groups = (self.rows, self.activations, self.statistics)
        return tuple(spec for group in groups for spec in group.values())

    def all(self) -> dict[str, ArraySpec]:
        """Return the spec of every array by its path."""
        groups = (self.rows, self.activations, self.statistics, self.documents)
        specs = [spec for group in groups for spec in group.values()]
        return {spec.path: spec for spec in (*specs, *self.pooled.values())}
