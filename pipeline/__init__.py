"""From a corpus and a model to rows of activations: planning, forward passes, extraction.

May import: the store; neither ``analysis`` nor ``jobs``.
Start with ``plan/make.py`` and ``extract/extract.py``.
"""
