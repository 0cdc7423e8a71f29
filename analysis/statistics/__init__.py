"""Statistics from moments: pure functions of numpy arrays.

Imports: numpy, scipy, and moments and errors of the store.
Start with ``welch.py``.
"""
