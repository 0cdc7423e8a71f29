"""JSON outputs of ``actlas hookpoints``, ``info`` and ``show``: what models and stores hold."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from actlas.jobs.run.reports.base import MayLack, Part, Report, Text
from actlas.store.format.schema import FeaturesSpec, HookpointSpec, Plan


class PatternMatch(Part):
    """The hookpoints that a pattern matches."""

    pattern: Text
    """The pattern."""
    hookpoints: list[str]
    """Names of the matching hookpoints."""
    bytes_per_token: int
    """Stored bytes per token of these hookpoints together, before compression."""


class HookpointEntry(HookpointSpec):
    """A hookpoint of a model."""

    positions: int | None
    """Positions per image; null for a model that reads text."""
    bytes_per_token: int
    """Stored bytes per token (or position), before compression."""


class ModuleEntry(Part):
    """A module that runs once per forward pass and gives one vector per position."""

    module: str
    """Path of the module, which is also a hookpoint's name."""
    width: int
    """Length of the vector."""
    positions: int
    """Number of positions in the forward pass that was traced."""


class HookpointsReport(Report):
    """Output of ``actlas hookpoints --json``."""

    model: Text
    """Name of the model."""
    revision: str | None
    """Revision of a hub model."""
    architecture: str
    """Class of the model."""
    reads: str
    """Input of the model: ``text`` or ``images``."""
    blocks: str | None
    """Module path of the stack of blocks; null if the model has none."""
    n_layers: int
    """Number of blocks."""
    dtype: str
    """Data type that the byte counts assume."""
    patterns: list[PatternMatch]
    """Matches of each given pattern."""
    hookpoints: list[HookpointEntry]
    """Hookpoints that match the patterns, or all named hookpoints."""
    bytes_per_token: int
    """Stored bytes per token of all these hookpoints together, before compression."""
    absent: dict[str, str]
    """Hookpoint names that this model does not have, each with the reason."""
    modules: list[ModuleEntry] | None
    """Modules that are hookpoints too; null without ``--modules``."""


class FeaturesEntry(FeaturesSpec):
    """A set of feature activations of a sparse autoencoder."""

    state: Literal["begun", "encoded", "indexed"]
    """Progress: encoding begun, encoded, or indexed by feature as well."""


class HookpointStatistics(Part):
    """Statistics of a hookpoint over all its stored rows."""

    n_rows: float
    """Number of rows."""
    mean_norm: float | None
    """Mean L2 norm of a row; null in stores of an early version."""
    rms_norm: float
    """Root mean square L2 norm of a row."""
    norm_of_mean: float
    """L2 norm of the mean row."""
    mean_std: float
    """Mean of the units' standard deviations."""
    max_std: float
    """Largest standard deviation of a unit."""
    within_share: float | None
    """Share of the units' sums of squares that lies within documents."""
    min: float
    """Smallest value."""
    max: float
    """Largest value."""


class InfoReport(MayLack, Report):
    """Output of ``actlas info --json``."""

    MAY_LACK: ClassVar[tuple[str, ...]] = ("corpus_left_out",)

    store: Text
    """Path or URL of the store."""
    plan: Plan
    """The store's plan: its model, corpus, windows, hookpoints and settings."""
    n_shards: int
    """Number of shards of rows."""
    n_shards_done: int
    """Number of finished shards of rows."""
    n_pooled_shards: int
    """Number of shards of pooled rows."""
    n_pooled_shards_done: int
    """Number of finished shards of pooled rows."""
    corpus_left_out: tuple[Text, ...] = ()
    """A line for each reason for which files of the corpus were not read. Absent if there is none,
    and for stores of earlier versions, which do not record it."""
    token_columns: dict[str, list[Text]]
    """Names of the values of each column of tokens."""
    n_stored_bytes: int
    """Stored bytes."""
    features: list[FeaturesEntry]
    """Sets of feature activations."""
    statistics: dict[str, HookpointStatistics]
    """Statistics by hookpoint; empty before the first shard is done."""


class ShowReport(Report):
    """Output of ``actlas show --json``: one document."""

    store: Text
    """Path or URL of the store."""
    doc_idx: int
    """Index of the document."""
    text: Text
    """Text of the document."""
    label: Text | None
    """Label of the document."""
    source: Text
    """Name of the file or data set that the document came from."""
    record: int
    """Index of the document's record in its source."""
    token_id: list[int]
    """Token ids."""
    tokens: list[Text]
    """Text of each token; empty for special tokens."""
    columns: dict[str, list[Text | None]]
    """Values of each column of tokens, one per token."""
    norms: dict[str, list[float]]
    """L2 norm of each token's activation vector, by hookpoint."""
    pooled_norms: dict[str, dict[str, float]]
    """L2 norm of each pooled row, by hookpoint and pooling."""
    pos_idx: int | None = None
    """Position of the token given by ``--pos``; absent without it."""
    context: tuple[Text, Text, Text] | None = None
    """Text before that token, the token, and the text after it; absent without ``--pos``."""

    def plain(self) -> dict[str, Any]:
        """Return plain values, without the fields of ``--pos`` if it was not given."""
        absent = {"pos_idx", "context"} if self.pos_idx is None else set()
        return self.model_dump(exclude=absent)
