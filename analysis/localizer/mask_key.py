"""The key of a mask: everything that the mask depends on, kept in its file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from actlas.store.format.schema import MAX_HOOKPOINTS, MAX_WIDTH, HookpointSpec, Line, Plan

Pool = Literal["last", "mean"]


class MaskKey(BaseModel):
    """The key of a mask: everything that the mask depends on.

    Attributes
    ----------
    model_id, revision, weights_sha256, config_sha256, architecture, d_model, n_layers
        The model, as the store's plan names it.
    compute_dtype, store_dtype : str
        The dtypes in which activations were computed and stored; float32 for pooled rows.
    tokenizer_sha256, max_length, long, keep_special
        The tokenization of the stimuli. ``max_length`` includes special tokens.
    stimuli, stimuli_sha256, text_field, label_field, lowercase
        The corpus, and a SHA-256 over the chosen documents' text in plan order.
    plan_sha256 : str
        The seal of the store's plan.
    hookpoints : tuple of HookpointSpec
        The tested hookpoints, in the store's order.
    positive, negative, pool, signed, top
        The contrast, and the share or number of units to select: ``"1%"`` or ``"128"``.
    column : str or None
        The token column that has the names ``positive`` and ``negative``; None for labels of
        documents.
    versions : dict
        Versions of the software that made the activations and the mask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_id: Line
    revision: str | None
    weights_sha256: str
    config_sha256: str
    architecture: str
    d_model: int = Field(gt=0, le=MAX_WIDTH)
    n_layers: int = Field(gt=0, le=MAX_WIDTH)
    compute_dtype: str
    tokenizer_sha256: str
    stimuli: Line
    stimuli_sha256: str
    text_field: str | None
    label_field: str | None
    lowercase: bool
    max_length: int = Field(gt=0)
    long: str
    keep_special: bool
    store_dtype: str
    plan_sha256: str
    hookpoints: tuple[HookpointSpec, ...] = Field(min_length=1, max_length=MAX_HOOKPOINTS)
    positive: str
    negative: str
    column: str | None = None
    pool: Pool
    signed: bool
    top: str
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        plan: Plan,
        plan_sha256: str,
        *,
        hookpoints: tuple[HookpointSpec, ...],
        positive: str,
        negative: str,
        pool: Pool,
        signed: bool,
        top: str,
        versions: dict[str, str],
        store_dtype: str | None = None,
        column: str | None = None,
    ) -> MaskKey:
        """Return the key of a mask from a store.

        Parameters
        ----------
        plan : Plan
            The plan of the store.
        plan_sha256 : str
            The seal of the plan.
        hookpoints, positive, negative, pool, signed, top, versions, store_dtype, column
            Fields of the key; ``store_dtype`` is the plan's by default.
        """
        model, corpus = plan.model, plan.corpus
        preprocessing = plan.tokenizer or plan.processor
        return cls(
            model_id=model.id,
            revision=model.revision,
            weights_sha256=model.weights_sha256,
            config_sha256=model.config_sha256,
            architecture=model.architecture,
            d_model=model.d_model,
            n_layers=model.n_layers,
            compute_dtype=model.compute_dtype,
            tokenizer_sha256=preprocessing.sha256 if preprocessing is not None else "",
            stimuli=corpus.uri,
            stimuli_sha256=corpus.fingerprint,
            text_field=corpus.text_field,
            label_field=corpus.label_field,
            lowercase=corpus.lowercase,
            max_length=plan.windows.max_length,
            long=plan.windows.long,
            keep_special=plan.keep_special,
            store_dtype=store_dtype or plan.dtype,
            plan_sha256=plan_sha256,
            hookpoints=hookpoints,
            positive=positive,
            negative=negative,
            column=column,
            pool=pool,
            signed=signed,
            top=top,
            versions=versions,
        )

    @property
    def n_units(self) -> int:
        """Number of units of all tested hookpoints."""
        return sum(hookpoint.width for hookpoint in self.hookpoints)
