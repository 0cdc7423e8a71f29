from __future__ import annotations

import os

from support.jobs import PATHS

os.environ["PYTHONPATH"] = PATHS  # for the processes that tests start, Ray's workers among them
os.environ["PYTHONSAFEPATH"] = "1"
