"""What every test may use: the shared real data, where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text, stimuli and models: ``$ACTLAS_SHARED``, or ``shared`` beside us."""
    root = Path(__file__).resolve().parents[1]
    places = [Path(os.environ.get("ACTLAS_SHARED", "")), root / "shared", root.parent / "shared"]
    for place in places:
        if (place / "models" / "stories260K").is_dir():
            return place
    pytest.skip("the shared data is not here: set ACTLAS_SHARED to its folder")
