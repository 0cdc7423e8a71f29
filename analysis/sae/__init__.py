"""Sparse autoencoders: the module, SAELens's file format, and metrics; training is in ``train``.

Imports: the store and torch. ``train`` also imports ``batches``.
Start with ``model.py``.
"""
