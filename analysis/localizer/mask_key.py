"""The key of a mask: all that it depends on, in the file itself."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from actlas.store.format.schema import MAX_HOOKPOINTS, MAX_WIDTH, HookpointSpec, Line, Plan

Pool = Literal["last", "mean"]


class MaskKey(BaseModel):
    """All that a mask depends on.

    Attributes
    ----------
    model_id, revision, weights_sha256, config_sha256, architecture, d_model, n_layers
        The model, as the store's plan names it.
    compute_dtype, store_dtype : str
        What the activations were computed and stored in; pooled rows are float32.
    tokenizer_sha256, max_length, long, keep_special
        How the stimuli became tokens. ``max_length`` counts the special tokens too.
    stimuli, stimuli_sha256, text_field, label_field, lowercase
        The corpus, and a sha256 over the chosen documents' text in plan order.
    plan_sha256 : str
        The seal of the store's plan.
    hookpoints : tuple of HookpointSpec
        All that were tested, in the store's order.
    positive, negative, pool, signed, top
        The contrast, and how many units were asked for: ``"1%"`` or ``"128"``.
    column : str or None
        Of tokens, that ``positive`` and ``negative`` are names in; None for labels of documents.
    versions : dict
        Of the programs that made it.
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
        """Return the key of a mask that is made from a store with this plan."""
        model, corpus = plan.model, plan.corpus
        cutter = plan.tokenizer or plan.processor
        return cls(
            model_id=model.id,
            revision=model.revision,
            weights_sha256=model.weights_sha256,
            config_sha256=model.config_sha256,
            architecture=model.architecture,
            d_model=model.d_model,
            n_layers=model.n_layers,
            compute_dtype=model.compute_dtype,
            tokenizer_sha256=cutter.sha256 if cutter is not None else "",
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
        """Units of all hookpoints that were tested."""
        return sum(hookpoint.width for hookpoint in self.hookpoints)
