"""Training of sparse autoencoders on a store's shuffled batches, with exact resume.

Imports: ``sae``, ``batches``, the store.
Start with ``api.py``; ``trainer.py`` holds the losses and one step.
"""
