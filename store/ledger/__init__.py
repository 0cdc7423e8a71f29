"""The ledger: the plan's files, the receipts of jobs, the kinds of jobs, and the lease.

Imports ``format``, ``objects`` and ``errors``, and no reader or writer. Start reading in
``receipts.py``, then ``completion.py`` and ``job_kinds.py``.
"""
