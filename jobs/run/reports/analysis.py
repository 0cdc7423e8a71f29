"""JSON outputs of ``actlas localize``, ``ablate``, ``sae train|index`` and ``contexts``."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import RootModel

from actlas.analysis.localizer.mask_key import MaskKey
from actlas.jobs.run.reports.base import Part, Report, Text


class ContrastSide(Part):
    """One side of a contrast."""

    label: Text
    """Label of the documents, or value of the token column."""
    n_documents: int
    """Number of documents that are samples."""
    n_without_tokens: int
    """Number of documents left out because they have no tokens."""


class Contrast(Part):
    """Both sides of a contrast."""

    positive: ContrastSide
    """Side whose preferring units have positive t."""
    negative: ContrastSide
    """Side that is compared with."""


class HookpointCounts(Part):
    """Units of a hookpoint."""

    hookpoint: str
    """Name of the hookpoint."""
    n_units: int
    """Number of units."""
    n_selected: int
    """Number of selected units."""
    n_significant: int
    """Number of units with q below ``q_significant``."""


class LocalizeReport(Report):
    """Output of ``actlas localize --json``: Welch's t-test of every unit."""

    out: Text
    """Folder of the results."""
    store: Text
    """Path or URL of the store."""
    contrast: Contrast
    """The two conditions."""
    n_documents_ignored: int
    """Documents that belong to neither condition."""
    n_units: int
    """Units of all tested hookpoints."""
    n_units_tested: int
    """Units with a t-value."""
    n_units_nonfinite: int
    """Units left untested because a sample is NaN or infinite."""
    k: int
    """Number of units asked for."""
    n_selected: int
    """Number of units selected."""
    t_threshold: float | None
    """Smallest selected t."""
    t_max: float | None
    """Largest t."""
    median_cohen_d_selected: float | None
    """Median effect size (Cohen's d) of the selected units."""
    n_significant: int
    """Number of units with q below ``q_significant``, of either sign."""
    n_selected_significant: int
    """Number of selected units with q below ``q_significant``; if 0, the mask is of noise."""
    q_significant: float
    """Threshold of q (Benjamini-Hochberg)."""
    notes: list[Text]
    """What whoever uses the mask should know, such as that no unit passes ``q_significant``."""
    hookpoints: list[HookpointCounts]
    """Counts by hookpoint."""
    key: MaskKey
    """Key of the mask: everything that the mask depends on."""


class AblationCondition(Part):
    """Loss of the model under one condition."""

    condition: Literal["intact", "top", "random"]
    """Units set to zero: none, those of the mask, or as many random ones."""
    seed: int | None
    """Seed of the random units."""
    n_units: int
    """Number of units set to zero."""
    loss: float | None
    """Loss in nats per predicted token; null if it is not finite."""
    loss_delta: float | None
    """Increase over the intact model's loss."""
    se: float | None
    """Standard error of ``loss_delta`` over documents; null below two documents."""
    perplexity: float | None
    """Exponential of the loss."""
    bits_per_token: float | None
    """Loss in bits per predicted token."""
    n_tokens: int
    """Number of predicted tokens."""


class AblateReport(Report):
    """Output of ``actlas ablate --json``."""

    out: Text
    """Folder of the results."""
    model: Text
    """Name of the model."""
    revision: str | None
    """Revision of a hub model."""
    weights_sha256: str
    """Digest of the model's weights."""
    compute_dtype: str
    """Data type of the computation."""
    corpus: Text
    """The corpus."""
    text_field: str | None
    """Field or column of the text."""
    lowercase: bool
    """Whether the text was converted to lower case."""
    n_documents: int
    """Number of documents."""
    max_tokens: int
    """Limit of the number of tokens."""
    max_length: int
    """Maximum tokens per window."""
    long: str
    """Treatment of documents longer than a window: ``window`` or ``truncate``."""
    random: int
    """Number of random draws."""
    new_tokens: int
    """Number of tokens generated per sample."""
    temperature: float
    """Sampling temperature; 0 takes the most likely token."""
    seed: int
    """Seed of the random units and of sampling."""
    batching: str
    """Windows that shared a forward pass, and why."""
    mask: MaskKey
    """Key of the mask."""
    units: dict[str, list[int]]
    """Units of the mask by hookpoint."""
    sentence: str
    """Conclusion in one sentence."""
    conditions: list[AblationCondition]
    """Loss by condition."""


class DensityHistogram(Part):
    """Histogram of the features' log10 density."""

    edges: list[float]
    """Edges of the bins."""
    counts: list[int]
    """Number of features per bin."""
    note: str
    """Remark on the first bin and on dead features."""


class HeldOutPoint(Part):
    """A measurement of held-out rows during the training."""

    step: int
    """Steps taken."""
    tokens: int
    """Rows seen in training."""
    explained_variance: float
    """Explained variance of up to 8,192 held-out rows."""


class SaeTrainReport(Report):
    """Output of ``actlas sae train --json``: the folder, and the contents of its metrics.json."""

    out: Text
    """Folder of the results."""
    n_tokens: int
    """Number of evaluated tokens."""
    explained_variance: float | None
    """1 - sum |x - x'|^2 / sum |x - mean|^2; null if all rows are equal."""
    mse_per_token: float
    """Mean over tokens of the squared reconstruction error, summed over units."""
    mse_per_value: float
    """``mse_per_token`` divided by the number of units."""
    l0: float
    """Mean number of active features per token."""
    l1: float
    """Mean sum of a token's feature activations."""
    cosine_similarity: float
    """Mean cosine similarity of a row and its reconstruction."""
    dead_share: float
    """Share of the features that are active on none of the evaluated tokens."""
    n_features: int
    """Number of features (d_sae)."""
    n_dead: int
    """Number of features that are active on none of the evaluated tokens."""
    log10_density: DensityHistogram
    """Histogram of the features' densities."""
    explained_variance_is: str
    """Formula of ``explained_variance``."""
    evaluated_on: Literal["held-out rows", "training rows"]
    """Rows of the evaluation."""
    held_out_curve: tuple[HeldOutPoint, ...] = ()
    """Measurements during the training; empty where no rows are held out."""
    options: dict[str, Any]
    """Options of the training, and the digest of the store's plan."""
    n_steps: int
    """Number of training steps."""
    n_tokens_seen: int
    """Number of rows seen in training, repetitions included."""
    seconds: float
    """Seconds of training."""
    rows_per_second: float
    """Rows per second of training."""


class SaeIndexReport(Report):
    """Output of ``actlas sae index --json``."""

    store: Text
    """Path or URL of the store."""
    name: str
    """Name of the set of features."""
    n_features: int
    """Number of features."""
    n_codes: int
    """Number of feature activations above zero."""
    n_blocks: int
    """Number of index blocks."""
    n_passes: int
    """Number of passes over the feature activations."""
    n_bytes: int
    """Bytes of the index."""
    n_bytes_by_token: int
    """Bytes of the feature activations ordered by token."""
    seconds: float
    """Duration in seconds."""


class ContextEntry(Part):
    """A token with its context, and the activation of every token in it."""

    value: float
    """Activation of the token."""
    t: int
    """Row of the token in the store."""
    doc_idx: int
    """Index of the document."""
    pos_idx: int
    """Position of the token in its document."""
    label: Text | None
    """Label of the document."""
    source: Text
    """Name of the file or data set that the document came from."""
    before: Text
    """Text before the token."""
    token: Text
    """Text of the token."""
    after: Text
    """Text after the token."""
    tokens: list[Text]
    """Tokens of the whole context; joined, they are ``before + token + after``."""
    activations: list[float | None]
    """Activation of each of these tokens; null if it is not finite."""
    peak: int
    """Index of the token in ``tokens``."""


class FeatureContexts(Report):
    """Contexts of one feature or unit."""

    title: Text
    """Name of the feature or unit."""
    facts: dict[str, str]
    """Facts about the feature or unit, as text."""
    scale: float
    """Activation that is shown with full shading."""
    contexts: list[ContextEntry]
    """Contexts, ordered by activation."""


class ContextsReport(RootModel[FeatureContexts | list[FeatureContexts]]):
    """Output of ``actlas contexts --json``: one feature or unit; with ``--some``, a list."""

    def to_json(self) -> str:
        """Return the line that ``--json`` prints."""
        return json.dumps(self.model_dump())
