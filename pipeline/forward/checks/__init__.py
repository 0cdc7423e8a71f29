"""Checks of a loaded model, by trial: what a forward pass may be relied on for.

May import: what ``pipeline.forward`` may, and its other files.
Start at ``batch_invariance.py``, which decides the sequences that may share a forward pass.
"""
