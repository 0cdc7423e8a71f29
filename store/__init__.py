"""The store: its format, its crash-safe write protocol, and reading. No torch, ray or dask.

Imports no other package of actlas. Start reading in ``store.py`` (``open_store``), then
``format/layout.py``.
"""
