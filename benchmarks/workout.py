"""The arithmetic of `docs/scale.md`: a 3 B model over The Pile, and a thousand times as many rows.

Nothing is measured here; constants that were measured name their source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actlas.pipeline.forward.cost.memory import SHARDS_IN_MEMORY, shard_bytes
from actlas.pipeline.plan.estimate import PUTS_PER_S, duration
from actlas.pipeline.plan.store_size import StoreSize, store_size
from actlas.store.display.text import n_bytes
from actlas.store.format import layout
from actlas.store.format.catalog import StoreArrays
from actlas.store.format.schema import HookpointSpec, Plan
from benchmarks.harness import Table
from benchmarks.stores import SyntheticDocuments, plan_of

WIDTH, BLOCKS, PARAMETERS = 3_072, 28, 3_212_749_824
"""Parameters of Llama-3.2-3B."""
ROWS = 82_000_000
TIMES = 1_000
GPU_FLOPS, SHARE = 989e12, 0.4
"""Peak of an H200 in dense bfloat16 from its data sheet, and the share that a forward pass reaches,
which is an assumption and not a measurement."""
GPUS_PER_NODE = 8
TOKENS_PER_DOCUMENT, BYTES_PER_TOKEN = 851, 4.254
"""Tokens of a document: the mean of 201 public samples of The Pile with GPT-NeoX's tokenizer."""
RATES = {
    "documents/start": 2.5,
    "documents/text_start": 2.6,
    "documents/char_stop": 1.65,
    "documents/source": 0.35,
    "documents/record": 1.5,
    "documents/token_id": 1.46,
    "documents/char_start": 1.03,
    "documents/text": 0.373,
    "rows/token_id": 1.72,
    "rows/doc_idx": 0.68,
    "rows/pos_idx": 1.7,
}
"""Stored bytes of a row of columns, measured on the same documents."""
STATISTICS_BYTES = 148_000
"""Bytes of statistics per shard and hookpoint of 3,072 units, measured on synthetic rows."""
TRAINED = 0.1
CODE_BYTES_PER_S = 0.5e9
"""Raw bytes per second that one core compresses with `dense`: see `benchmarks.compression`."""
SELECTION_BYTES = 84
"""Bytes of each chunk while rows are selected: measured with the sampler's `select`."""
PLANNING_BYTES, PLANNING_S = 140, 82e-6
"""Seconds of each document, without the tokenizer: see `benchmarks.scale`."""
SPOOL_BYTES = 8 + BYTES_PER_TOKEN
"""Bytes of each token while planning: two numbers and its text."""


@dataclass(frozen=True)
class Case:
    """A run: number of rows, number of blocks, compression profile."""

    n_rows: int
    n_blocks: int
    compression: str
    shard_rows: int | None = None

    @property
    def plan(self) -> Plan:
        like = plan_of(SyntheticDocuments(np.array([5])), WIDTH, self.compression, 1)
        spec = like.hookpoints[0]
        hookpoints = tuple(
            HookpointSpec(name=f"resid_post.{i}", module=f"layers.{i}", side="output", width=WIDTH)
            for i in range(self.n_blocks)
        )
        n_documents = self.n_rows // TOKENS_PER_DOCUMENT
        row_bytes = [2 * spec.width] * self.n_blocks
        return like.model_copy(
            update={
                "hookpoints": hookpoints,
                "n_tokens": self.n_rows,
                "n_documents": n_documents,
                "n_windows": n_documents,
                "n_text_bytes": round(self.n_rows * BYTES_PER_TOKEN),
                "shard_rows": self.shard_rows or layout.choose_shard_rows(self.n_rows, row_bytes),
            }
        )

    def stored(self) -> StoreSize:
        plan = self.plan
        statistics = dict.fromkeys(
            (spec.path for spec in StoreArrays(plan).statistics.values()), STATISTICS_BYTES
        )
        return store_size(plan, {**RATES, **statistics}, labelled=False)


def tokens_per_s() -> float:
    """Return the assumed tokens per second of one GPU: all blocks are run."""
    return GPU_FLOPS * SHARE / (2 * PARAMETERS)


CASES = [
    Case(rows, blocks, compression)
    for rows in (ROWS, ROWS * TIMES)
    for blocks in (1, BLOCKS)
    for compression in ("none", "dense")
]


def sizes() -> Table:
    """Return the table of sizes on disk."""
    columns = ("rows", "blocks", "compression", "shards", "rows per shard", "objects", "bytes")
    table = Table(
        "What lies on disk", (*columns, "row columns", "documents", "statistics", "ledger")
    )
    for case in CASES:
        plan, stored = case.plan, case.stored()
        ledger = stored.bytes_of("receipts") + stored.bytes_of("metadata")
        cells = (f"{case.n_rows:,}", f"{case.n_blocks}", case.compression, f"{plan.n_shards:,}")
        cells += (f"{plan.shard_rows:,}", f"{stored.n_objects:,}", n_bytes(stored.n_bytes))
        parts = [stored.bytes_of(name) for name in ("rows", "documents", "statistics")]
        table.rows.append((*cells, *map(n_bytes, parts), n_bytes(ledger)))
    return table


def rates() -> Table:
    """Return the table of rates that one GPU at the assumed speed requires."""
    columns = (
        "blocks",
        "compression",
        "shards/s",
        "objects/s",
        "written/s",
        "per node",
        "cores to compress",
    )
    table = Table(
        f"One GPU at {tokens_per_s():,.0f} tokens/s (assumed)", (*columns, "GPUs to 3,500 PUT/s")
    )
    for blocks in (1, BLOCKS):
        for compression in ("none", "dense"):
            case = Case(ROWS, blocks, compression)
            stored, plan = case.stored(), case.plan
            shards = tokens_per_s() / plan.shard_rows
            objects = shards * stored.objects_per_shard
            written = shards * stored.bytes_per_shard
            raw = tokens_per_s() * 2 * WIDTH * blocks
            cores = "-" if compression == "none" else f"{raw / CODE_BYTES_PER_S:.2g}"
            cells = (f"{blocks}", compression, f"{shards:.2f}", f"{objects:.1f}", n_bytes(written))
            node = n_bytes(written * GPUS_PER_NODE)
            table.rows.append((*cells, node, cores, f"{PUTS_PER_S / objects:,.0f}"))
    return table


def hours() -> Table:
    """Return the table of durations, and of the load of the driver and the object store."""
    columns = ("rows", "blocks", "GPUs", "time", "shards/s", "objects/s", "written/s")
    table = Table("By number of GPUs, compression dense", columns)
    for rows, gpu_counts in ((ROWS, (1, 8)), (ROWS * TIMES, (8, 64, 512))):
        for blocks in (1, BLOCKS):
            case = Case(rows, blocks, "dense")
            stored, plan = case.stored(), case.plan
            for gpus in gpu_counts:
                speed = gpus * tokens_per_s()
                shards = speed / plan.shard_rows
                cells = (f"{rows:,}", f"{blocks}", f"{gpus}", duration(rows / speed / 3600))
                cells += (f"{shards:,.1f}", f"{shards * stored.objects_per_shard:,.0f}")
                table.rows.append((*cells, n_bytes(shards * stored.bytes_per_shard)))
    return table


def planning() -> Table:
    """Return the table of planning."""
    columns = ("rows", "documents", "memory", "spool on disk", "time without the tokenizer")
    table = Table("Planning, in one process", (*columns, "documents.start in a reader"))
    for rows in (ROWS, ROWS * TIMES):
        n = rows // TOKENS_PER_DOCUMENT
        cells = (f"{rows:,}", f"{n:,}", n_bytes(n * PLANNING_BYTES), n_bytes(rows * SPOOL_BYTES))
        table.rows.append((*cells, duration(n * PLANNING_S / 3600), n_bytes(8 * n)))
    return table


def training() -> Table:
    """Return the table of reading a tenth of one block."""
    columns = (
        "rows",
        "trained on",
        "compression",
        "bytes per epoch",
        "s at 1 GB/s",
        "chunks",
        "selection",
    )
    table = Table("Training on a tenth of one block", columns)
    for rows in (ROWS, ROWS * TIMES):
        for compression in ("none", "dense"):
            case = Case(rows, 1, compression)
            spec = StoreArrays(case.plan).activations["resid_post.0"]
            n_read = TRAINED * case.stored().bytes_of("activations")
            n_chunks = layout.ceil_div(rows, spec.chunk_rows)
            cells = (f"{rows:,}", f"{rows * TRAINED:,.0f}", compression, n_bytes(n_read))
            held = n_bytes(n_chunks * SELECTION_BYTES)
            table.rows.append((*cells, f"{n_read / 1e9:,.0f}", f"{n_chunks:,}", held))
    return table


def ledger() -> Table:
    """Return the table of receipts and of a worker's memory."""
    columns = (
        "rows",
        "blocks",
        "compression",
        "receipts",
        "bytes each",
        "all",
        "2 shards of a worker",
    )
    table = Table("Receipts, and a worker's memory without weights and batch", columns)
    for case in CASES:
        plan = case.plan
        all_bytes = case.stored().bytes_of("receipts")
        each = round(all_bytes / plan.n_shards / 100) * 100
        held = n_bytes(SHARDS_IN_MEMORY * shard_bytes(plan))
        cells = (f"{case.n_rows:,}", f"{case.n_blocks}", case.compression, f"{plan.n_shards:,}")
        table.rows.append((*cells, f"{each:,}", n_bytes(all_bytes), held))
    return table


def markdown() -> str:
    """Return all tables in Markdown, as on the page."""
    return (
        "\n\n".join(map(str, (sizes(), ledger(), rates(), hours(), planning(), training()))) + "\n"
    )
