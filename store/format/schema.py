"""Schemas of a store's records: the plan, the receipts, the sets of feature activations.

A :class:`Plan` defines what each row *is*. It is frozen before a model runs, and every later
command is checked against it. How rows are *computed* (workers, device, budgets) is not part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator
from pydantic_core.core_schema import SerializerFunctionWrapHandler

from actlas.store.errors import ConfigError
from actlas.store.format import layout
from actlas.store.format.dtypes import ActivationDtype

Compression = Literal["none", "fast", "dense"]

Order = Literal["shuffled", "corpus"]

LongDocuments = Literal["window", "truncate"]

Modality = Literal["text", "image", "mixed"]

Pool = Literal["last", "mean", "sum"]

Layout = Literal["positions", "feature_map"]

# The largest numbers that a record may hold. A store may come from an untrusted source: a larger
# number could make a reader allocate memory, or run a loop, for data that does not exist.
MAX_WIDTH = 1 << 20

MAX_ROWS = 1 << 48

MAX_BYTES = 1 << 56

MAX_SHARDS = 1 << 23

MAX_SHARD_ROWS = 1 << 24

MAX_FEATURES = 1 << 26

MAX_HOOKPOINTS = 4096

MAX_FILES = 1 << 16

MAX_REASONS = 64

LINE = r"^[^\x00-\x1f\x7f-\x9f]*$"

Line = Annotated[str, Field(max_length=4096, pattern=LINE)]
"""Text that is displayed: without control characters, which could act on a terminal."""

Count = Annotated[int, Field(ge=0, lt=1 << 63)]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_RESERVED = frozenset(
    [
        *("token_id", "doc_idx", "pos_idx", "special", "loss", "start", "text", "text_start"),
        *("char_start", "char_stop", "source", "record", "label", "meta", "image", "image_start"),
    ]
)

_COLUMN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,99}")


def check_token_columns(names: Sequence[str]) -> None:
    """Raise ``ConfigError`` if token columns cannot have these names."""
    for name in names:
        why = None
        if name in _RESERVED:
            why = "a store uses that name for something else"
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
    """The model that computes the rows.

    ``weights_sha256`` is a hash of every weight file's name and bytes, ``config_sha256`` one of
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
    """The kind of the model's inputs: text, images, or text with images in it."""
    untrained_seed: Count | None = None
    """The seed of random weights, if the model is not trained; ``weights_sha256`` is of those."""


class TokenizerSpec(_Spec):
    """The tokenizer, and the special tokens that it adds around each window."""

    id: Line
    sha256: str
    vocab_size: int = Field(gt=0, lt=1 << 31)
    prefix_ids: tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...]
    suffix_ids: tuple[Annotated[int, Field(ge=0, lt=1 << 31)], ...]


class ProcessorSpec(_Spec):
    """The image processor, and the layout of an image's positions.

    ``config`` is the processor's complete configuration, so that a worker needs no file of it;
    ``sha256`` is its hash as JSON with sorted keys and without blanks.
    """

    id: Line
    sha256: str
    config: dict[str, Any]
    grid: tuple[Annotated[int, Field(ge=0, le=1 << 16)], Annotated[int, Field(ge=0, le=1 << 16)]]
    """The number of rows and columns of an image's patches."""
    n_prefix: int = Field(default=0, ge=0, lt=1 << 31)
    """The number of positions before the patches (a class token, registers)."""
    n_suffix: int = Field(default=0, ge=0, lt=1 << 31)
    image_token_id: int | None = None
    """In text with images: the token that stands for a patch."""


class CorpusSpec(_Spec):
    """The source of the documents and how they were selected.

    ``fingerprint`` is a sha256 of the selected documents' text, in the plan's order.
    """

    uri: Line
    fingerprint: str
    text_field: str | None
    label_field: str | None
    lowercase: bool
    sample: Literal["all", "uniform", "head"]
    n_records_read: Count
    n_records_skipped: Count
    delimiters: tuple[Annotated[str, Field(max_length=1)], ...] = Field(default=(), max_length=16)
    """The delimiters of tables of text that are no comma (``.csv``) and no tab (``.tsv``)."""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what earlier versions of the format did not have, unless it is there."""
        fields: dict[str, Any] = handler(self)
        if not self.delimiters:
            fields.pop("delimiters", None)
        return fields


class WindowSpec(_Spec):
    """How a document is split into windows. ``max_length`` includes the special tokens."""

    max_length: int = Field(gt=0, lt=MAX_ROWS)
    long: LongDocuments


class HookpointSpec(_Spec):
    """One hookpoint: the module and side at which activations are read, and their width."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=200)
    module: Line
    side: Literal["input", "output"]
    width: int = Field(gt=0, le=MAX_WIDTH)
    layout: Layout = "positions"
    """The layout of its tensor: [batch, position, unit], or [batch, unit, height, width], whose
    positions are read row by row."""


class Plan(_Spec):
    """The definition of every row, frozen before a model runs; commands must agree with it."""

    format_version: int
    actlas_version: str
    model: ModelSpec
    tokenizer: TokenizerSpec | None
    """None for a model that reads only images."""
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
    """The total size of the image files in ``documents/image``."""
    token_columns: tuple[str, ...] = ()
    """Categorical columns over tokens: ``role``, ``modality``, or a field of spans of the corpus.
    They are stored in ``rows/NAME`` and ``documents/NAME``; -1 stands for no value."""
    pools: tuple[Pool, ...] = ()
    """The pooled rows to store, one row per document: ``pooled/HOOKPOINT/POOL``."""
    dense: bool = True
    """Whether every token's activations are stored; if not, only pooled rows are."""
    with_loss: bool = False
    """Whether ``rows/loss`` holds the loss of predicting the token after each row's."""
    request: dict[str, Any] = Field(default_factory=dict)
    """The options as the user gave them; a later command is compared with them."""

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
        """The number of shards of dense rows; the last one may be shorter."""
        return -(-self.n_tokens // self.shard_rows)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the tokens (and rows) [start, stop) of a shard."""
        return layout.shard_range(shard, self.shard_rows, self.n_tokens)


class FolderFiles(BaseModel):
    """The files of a model's or a tokenizer's folder when the store was planned.

    ``read`` gives the sha256 of every file that loading may read, by its path inside the folder;
    ``ignored`` lists what was there besides, folders with a slash at the end.
    """

    model_config = ConfigDict(frozen=True)  # fields that a later version adds are left aside

    id: Line
    read: dict[Line, Sha256] = Field(max_length=MAX_FILES)
    ignored: tuple[Line, ...] = Field(default=(), max_length=MAX_FILES)


class ModelFiles(BaseModel):
    """The files that a store's rows and tokens depend on: ``ledger/model_files.json``.

    ``tokenizer`` is the folder of a tokenizer that is not the model's own. ``corpus_left_out`` has
    a line for each reason for which files of the corpus were not read, with the first names.
    """

    model_config = ConfigDict(frozen=True)

    format_version: int
    model: FolderFiles
    tokenizer: FolderFiles | None = None
    corpus_left_out: tuple[Line, ...] = Field(default=(), max_length=MAX_REASONS)


class ObjectRecord(_Spec):
    """One written object: its key, size, XXH3 (128 bits) and the attempt that wrote it.

    A crc32c of the object would not detect damage, since the crc32c of bytes that end with their
    own crc32c, as every compressed chunk does, is a constant. ``chunk_crc32c`` is recorded for
    uncompressed arrays, whose chunks carry no checksum of their own.
    """

    key: Line
    n_bytes: Count
    xxh3: str = Field(pattern=r"^[0-9a-f]{32}$")
    attempt: Line
    chunk_crc32c: tuple[Annotated[int, Field(ge=0, lt=1 << 32)], ...] | None = None


class Receipt(_Spec):
    """The completion record of one shard of a job: written last, and never overwritten.

    ``plan_sha256`` is the seal of the plan by which the rows were computed. A receipt of another
    plan, left behind or written late at the same path, is not valid.
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
    """How the shard was computed: device, seconds of forward pass and of writing, token budget."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """For derived data: the seals of the records that it was computed from, by key."""
    generation: int = Field(default=0, ge=0, lt=10**4)
    """0 for a run's receipt; a repair that changes bytes writes the next. The highest is valid."""


class FeaturesSpec(_Spec):
    """A set of feature activations: its sparse autoencoder and its hookpoint.

    ``sae_sha256`` is a hash of the autoencoder's configuration and weights. Feature activations are
    stored as float32 rounded to bfloat16.
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
    """Whether ``ledger/features.copies/<name>.json`` holds a copy of this record."""


class PlanFile(_Spec):
    """The plan as the ledger stores it, with the sha256 and size of each object it rests on."""

    plan: Plan
    objects: dict[str, tuple[str, Count]]
    created_unix_s: float
    has_copy: bool = False
    """Whether ``ledger/plan.copy.json`` holds a copy of this record; earlier stores have none."""
