"""Analysis of stored activations: batches, sparse autoencoders, localizers, interventions.

Imports: the store, and of pipeline only ``model``, ``hookpoints`` and ``forward``; never ``jobs``.
Start with ``batches/api.py`` (shuffled rows) or ``localizer/localize.py`` (a test of every unit).
"""
