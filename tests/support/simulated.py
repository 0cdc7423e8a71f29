"""The imagined cluster of ``benchmarks/simulated.py``, by the same names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "simulated.py"
_SPEC = importlib.util.spec_from_file_location("simulated_cluster", _FILE)
assert _SPEC is not None and _SPEC.loader is not None
simulated = importlib.util.module_from_spec(_SPEC)
sys.modules["simulated_cluster"] = simulated
_SPEC.loader.exec_module(simulated)
