"""Shuffled batches: which rows come when, the shuffle buffer, and the resumable stream.

Imports: the store, numpy and torch.
Start with ``api.py``; ``sampler.py`` draws the order and is pure integer arithmetic.
"""
