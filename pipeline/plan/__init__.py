"""Planning: a frozen plan of all rows, before a model runs, and estimates of size and time.

May import: every room of ``pipeline`` but ``extract``, and the store.
Start with ``make.py``: :func:`~actlas.pipeline.plan.make.make_plan`.
"""
