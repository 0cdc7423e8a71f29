"""Interventions as experiments: what a model loses or does when its activations are changed.

Imports: ``localizer`` (masks) and the model runtime of pipeline, where ``forward/intervene`` is.
Start with ``ablation.py``.
"""
