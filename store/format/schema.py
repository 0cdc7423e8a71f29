"""What a store says of itself: the plan and the receipts, parsed strictly at the boundary.

A :class:`Plan` is what a row *is*. It is frozen before a model runs, and every later command is
held against it. How rows are *made* (workers, device, budgets) is not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actlas.store.errors import ConfigError
from actlas.store.format import layout
from actlas.store.format.dtypes import ActivationDtype

Compression = Literal["none", "fast", "dense"]

Order = Literal["shuffled", "corpus"]

LongDocuments = Literal["window", "truncate"]

Modality = Literal["text", "image", "mixed"]

Pool = Literal["last", "mean", "sum"]

Layout = Literal["positions", "feature_map"]

# What a record may say at most. A store may come from a stranger: a number beyond these would have
# memory taken, or a loop run, for data that nobody has.
MAX_WIDTH = 1 << 20

MAX_ROWS = 1 << 48

MAX_BYTES = 1 << 56

MAX_SHARDS = 1 << 23

MAX_SHARD_ROWS = 1 << 24

MAX_FEATURES = 1 << 26

MAX_HOOKPOINTS = 4096

Line = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Text that is shown to people: no control character, which could steer a terminal."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]

_RESERVED = frozenset(
    [
        *("token_id", "doc_idx", "pos_idx", "special", "loss", "start", "text", "text_start"),
        *("char_start", "char_stop", "source", "record", "label", "meta", "image", "image_start"),
    ]
)

_COLUMN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,99}")


def check_token_columns(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` where columns of tokens cannot have these names."""
    for name in names:
        why = None
        if name in _RESERVED:
            why = "a store has something else of that name"
        elif not _COLUMN.fullmatch(name):
            why = "expected at most 100 letters, digits, _ and -"
        elif names.count(name) > 1:
            why = "two columns would have it"
        if why:
            raise ConfigError(
                f"{name!r} cannot name a column of tokens: {why}. Rename the field.", field=name
            )


class _Spec(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=False,
        ser_json_inf_nan="strings",
        allow_inf_nan=False,
    )


class ModelSpec(_Spec):
    """Which model computes the rows.

    ``weights_sha256`` is over every weight file's name and bytes, ``config_sha256`` over
    ``config.json``: a model that differs in one bit is another model.
    """

    id: Line
    revision: Line | None
    architecture: Line
    weights_sha256: str
    config_sha256: str
    d_model: int = Field(gt=0, le=MAX_WIDTH)
    n_layers: int = Field(gt=0, le=MAX_WIDTH)
    context_length: int | None = Field(gt=0, lt=MAX_ROWS)
    causal: bool
    compute_dtype: ActivationDtype
    trust_remote_code: bool = False
    modality: Modality = "text"
    """What it reads: texts, images, or texts with images in them."""
    untrained_seed: Count | None = None
    """The model's shape with fresh weights of this seed; ``weights_sha256`` is then over those."""


class TokenizerSpec(_Spec):
    """Which tokenizer cuts the text, and what it adds around each window."""

    id: Line
    sha256: str
    vocab_size: int = Field(gt=0, lt=1 << 31)
    prefix_ids: tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...]
    suffix_ids: tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...]


class ProcessorSpec(_Spec):
    """What turns an image into a model's input, and how its positions lie.

    ``config`` is the processor's whole configuration, so that a worker needs no file of it, and
    ``sha256`` is over it as JSON (sorted keys, no blanks).
    """

    id: Line
    sha256: str
    config: dict[str, Any]
    grid: tuple[Annotated[int, Field(ge=0, le=1 << 16)], Annotated[int, Field(ge=0, le=1 << 16)]]
    """Rows and columns of an image's patches."""
    n_prefix: int = Field(default=0, ge=0, lt=1 << 31)
    """Positions before the patches that are none of the image (a class token, registers)."""
    n_suffix: int = Field(default=0, ge=0, lt=1 << 31)
    image_token_id: int | None = None
    """In a mixed sequence: what stands where a patch goes."""


class CorpusSpec(_Spec):
    """Where the documents came from and how they were chosen.

    ``fingerprint`` is a sha256 over the chosen documents' text, in plan order.
    """

    uri: Line
    fingerprint: str
    text_field: str | None
    label_field: str | None
    lowercase: bool
    sample: Literal["all", "uniform", "head"]
    n_records_read: Count
    n_records_skipped: Count


class WindowSpec(_Spec):
    """How a document becomes sequences. ``max_length`` counts the special tokens too."""

    max_length: int = Field(gt=0, lt=MAX_ROWS)
    long: LongDocuments


class HookpointSpec(_Spec):
    """One array of activations: where it is read in the model, and how wide it is."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=200)
    module: Line
    side: Literal["input", "output"]
    width: int = Field(gt=0, le=MAX_WIDTH)
    layout: Layout = "positions"
    """How its tensor lies: [batch, position, unit], or [batch, unit, height, width], whose
    positions are read row by row."""


class Plan(_Spec):
    """What a row is. Frozen before a model runs; a difference is refused by naming the field."""

    format_version: int
    actlas_version: str
    model: ModelSpec
    tokenizer: TokenizerSpec | None
    """None for a model that reads images alone."""
    corpus: CorpusSpec
    windows: WindowSpec
    hookpoints: tuple[HookpointSpec, ...] = Field(min_length=1, max_length=MAX_HOOKPOINTS)
    order: Order
    seed: int = Field(ge=0, lt=2**63)
    keep_special: bool
    dtype: ActivationDtype
    compression: Compression
    n_documents: int = Field(ge=0, lt=MAX_ROWS)
    n_tokens: int = Field(gt=0, lt=MAX_ROWS)
    n_text_bytes: int = Field(ge=0, lt=MAX_BYTES)
    n_windows: int = Field(gt=0, lt=MAX_ROWS)
    shard_rows: int = Field(gt=0, le=MAX_SHARD_ROWS)
    processor: ProcessorSpec | None = None
    n_image_bytes: int = Field(default=0, ge=0, lt=MAX_BYTES)
    """Of the image files that lie in ``documents/image``."""
    token_columns: tuple[str, ...] = ()
    """Columns of named codes for every token, beside token_id: ``role``, ``modality``, or a field
    of spans of the corpus. ``rows/NAME`` and ``documents/NAME``; -1 where there is none."""
    pools: tuple[Pool, ...] = ()
    """Whole documents pooled into one row each: ``pooled/HOOKPOINT/POOL``."""
    dense: bool = True
    """Whether every token's activations are stored; if not, there are only pooled ones."""
    with_loss: bool = False
    """Whether ``rows/loss`` holds the loss of the token that follows each row."""
    request: dict[str, Any] = Field(default_factory=dict)
    """The options as the user gave them, to compare a later command with."""

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        names = [h.name for h in self.hookpoints]
        if len(set(names)) != len(names):
            raise ValueError(f"hookpoint names must be unique, got {names}")
        if self.shard_rows & (self.shard_rows - 1):
            raise ValueError(f"shard_rows must be a power of two, got {self.shard_rows}")
        if self.n_shards > MAX_SHARDS:
            raise ValueError(
                f"at most {MAX_SHARDS:,} shards, got {self.n_shards:,}: raise shard_rows, "
                f"{self.shard_rows}"
            )
        if len(set(self.pools)) != len(self.pools):
            raise ValueError(f"pools must be unique, got {self.pools}")
        check_token_columns(self.token_columns)
        if not self.dense and not self.pools:
            raise ValueError("a plan without dense rows needs pools, got none")
        return self

    @property
    def n_shards(self) -> int:
        """Number of shards: the last may be short."""
        return -(-self.n_tokens // self.shard_rows)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the tokens (and rows) [start, stop) of a shard."""
        return layout.shard_range(shard, self.shard_rows, self.n_tokens)

    def hookpoint(self, name: str) -> HookpointSpec:
        """Return the hookpoint of that name, or raise ``KeyError``."""
        return next(h for h in self.hookpoints if h.name == name)


class ObjectRecord(_Spec):
    """One written object: its key, its size, the XXH3 (128 bits) of its bytes, who wrote it.

    A crc32c of the whole would not do: that of bytes which end with their own crc32c, as every
    compressed chunk does, is a constant. ``chunk_crc32c`` is there for profile ``none``, whose
    chunks carry no checksum of their own.
    """

    key: Line
    n_bytes: Count
    xxh3: str = Field(pattern=r"^[0-9a-f]{32}$")
    attempt: Line
    chunk_crc32c: tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...] | None = None


class Receipt(_Spec):
    """Proof that a shard of a job is done. Written last, create-only.

    ``plan_sha256`` is the seal of the plan that its rows were made by: a receipt of another plan,
    left or written late at the same path, proves nothing.
    """

    format_version: int
    plan_sha256: str
    job: Line
    shard: int = Field(ge=0, lt=10**8)
    start: Count
    stop: Count
    attempt: Line
    host: Line
    created_unix_s: float
    versions: dict[str, str]
    objects: tuple[ObjectRecord, ...]
    n_nonfinite: dict[str, Count]
    run: dict[str, Any] = Field(default_factory=dict)
    """How it was made: device, seconds of forward pass and of writing, token budget."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Of derived data: the sealed records that it was made from, by key, with their seals."""
    generation: int = Field(default=0, ge=0, lt=10**4)
    """0 as a run wrote it; higher where a repair gave other bits: the highest stands."""


class FeaturesSpec(_Spec):
    """A set of features: which sparse autoencoder gave the codes, of which hookpoint.

    ``sae_sha256`` is over its configuration and weights. Values are stored as float32 rounded to
    bfloat16.
    """

    format_version: int
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=100)
    plan_sha256: str
    hookpoint: Line
    n_features: int = Field(gt=0, le=MAX_FEATURES)
    sae_kind: Line
    sae_sha256: str
    sae_path: Line
    created_unix_s: float
    has_copy: bool = False
    """Whether the same bytes lie at ``ledger/features.copies/<name>.json``."""


class PlanFile(_Spec):
    """The plan as it lies in the ledger: with the sha256 and size of all that it rests on."""

    plan: Plan
    objects: dict[str, tuple[str, Count]]
    created_unix_s: float
    has_copy: bool = False
    """Whether the same bytes lie at ``ledger/plan.copy.json``; an earlier version wrote none."""
