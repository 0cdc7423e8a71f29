"""The model runtime: loading, batches, forward passes, capture, interventions, generation.

Imports: ``hookpoints``, ``model``, ``options`` of pipeline, and the store's format.
Start with ``capture.py`` and ``intervene.py``; ``run.py`` is the loop over batches.
"""
