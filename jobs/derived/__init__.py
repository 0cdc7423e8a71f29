"""Derived jobs, one file each: its kind, its worker, its run from Python, its part of `repair`.

May be imported here: analysis, pipeline, store and the rooms of jobs below; at module level nothing
heavy (torch, ray, matplotlib), since `verify` imports every file of this room to know its job
kinds. Start reading at ``index.py``; the kinds are explained in ``store/ledger/job_kinds.py``.
"""
