"""From settings and counted documents to the frozen plan."""

from __future__ import annotations

from actlas.pipeline.draft import Sample
from actlas.pipeline.settings import Settings
from actlas.store.schema import FORMAT_VERSION, CorpusSpec, Plan, WindowSpec
from actlas.store.version import VERSION


def assemble(settings: Settings, *, fingerprint: str, sample: Sample, **counts: int) -> Plan:
    """Return the plan over these documents.

    Parameters
    ----------
    settings : Settings
    fingerprint : str
        Of the documents.
    sample : {"all", "uniform", "head"}
        Which part of the corpus they are.
    **counts : int
        ``n_documents``, ``n_tokens``, ``n_text_bytes``, ``n_windows``, ``n_image_bytes``.
    """
    options, tally = settings.options, settings.corpus.tally
    return Plan(
        format_version=FORMAT_VERSION,
        actlas_version=VERSION,
        model=settings.model.spec,
        tokenizer=settings.cutter.spec,
        corpus=CorpusSpec(
            uri=settings.corpus.uri,
            fingerprint=fingerprint,
            text_field=settings.corpus.text_field,
            label_field=options.label_field,
            lowercase=options.lowercase,
            sample=sample,
            n_records_read=tally.n_read,
            n_records_skipped=tally.n_skipped,
        ),
        windows=WindowSpec(max_length=settings.max_length, long=settings.windows.long),
        hookpoints=settings.hookpoints,
        order=settings.order,
        seed=options.seed,
        keep_special=options.keep_special,
        dtype=options.dtype,
        compression=options.compression,
        shard_rows=settings.shard_rows(counts["n_tokens"]),
        processor=settings.processor,
        token_columns=settings.token_columns,
        pools=options.pool,
        dense=not options.pooled_only,
        with_loss=options.with_loss,
        request=options.model_dump(mode="json"),
        **counts,
    )
