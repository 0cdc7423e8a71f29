"""Jobs that users run: the command line, runs, executors, the scheduler and its monitor.

Anything of actlas may be imported here; Ray only in ``ray``, ``executors``, ``monitor.prometheus``
and ``doctor``, click only in ``cli``. Start reading at :mod:`actlas.jobs.cli.app` and
:mod:`actlas.jobs.run.run`.
"""
