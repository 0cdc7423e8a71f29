"""Localizers: a t-test of every unit between two conditions, and the mask of selected units.

Imports: the store, ``statistics`` and globs of hookpoints; no model runs here.
Start with ``localize.py``; ``pooling.py`` explains how documents become samples, out of core.
"""
