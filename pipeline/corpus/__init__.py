"""Corpora: documents from files, the hub or builtin data, their tokens, spans and images.

May import: ``pipeline.options``, ``pipeline.builtin`` and the store; no model.
Start with ``corpus.py``: :func:`~actlas.pipeline.corpus.corpus.open_corpus`.
"""
