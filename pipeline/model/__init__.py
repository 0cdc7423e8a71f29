"""Models: described from their files, without weights, and prepared for loading.

May import: ``pipeline.options``, ``pipeline.builtin`` and the store.
Start with ``describe.py``: :func:`~actlas.pipeline.model.describe.describe_model`.
"""
