"""Connection to Ray: address, authentication, resources, job server.

May import :mod:`actlas.pipeline.options` and :mod:`actlas.store`.
Start reading at :mod:`actlas.jobs.ray.cluster`.
"""
