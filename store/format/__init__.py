"""The format of a store: plan and receipt schemas, array geometry, ``zarr.json``; no I/O.

Imports ``statistics`` and ``errors``. Start reading in ``layout.py`` (which row lies where), then
``schema.py`` (the plan) and ``catalog.py`` (every array).
"""
