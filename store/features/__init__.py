"""Feature activations and the extremes of raw units, and their contexts in the documents.

Imports ``read`` and everything below it. Start reading in ``features.py``.
"""
