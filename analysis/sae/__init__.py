"""Sparse autoencoders: training on a store's batches, metrics, the format that SAELens reads."""
