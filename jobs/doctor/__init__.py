"""Checks of the environment: machine, Ray, and the location of a store.

May import :mod:`actlas.jobs.ray`, :mod:`actlas.pipeline` and :mod:`actlas.store`.
Start reading at :mod:`actlas.jobs.doctor.examine`.
"""
