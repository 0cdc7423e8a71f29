"""Features of a store: encoding by a sparse autoencoder, the index by feature, extremes of units.

May be imported here: ``actlas.analysis.sae``, ``actlas.store``, numpy; torch only in ``encode.py``.
Start reading at ``encode.py``; these are the derived jobs that ``actlas.jobs.derived`` runs.
"""
