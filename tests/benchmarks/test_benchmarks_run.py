"""Every benchmark runs to its end and prints figures. How fast it was is no matter here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "storage": ["write.fast.actlas.gbps", "read.slices.none.tensorstore.ratio"],
    "compression": ["embedded.fast.ratio", "document.none.cold.ms"],
    "extraction": ["embedded_all.ratio", "embedded_all.bytes_per_token"],
    "peers": ["peers.embedded.actlas_fast.tokens_per_s"],
    "moments": ["64.the_pile.cpu_s_per_gb", "256.12_tokens_each.times_plain"],
    "batches": ["cold.none.actlas_float32.ratio", "mixing.long.in_order"],
    "scheduling": ["ray.2.the_driver.units_per_s", "imagined.16.driver_us_per_unit"],
    "welch": ["stimuli.warm.mean.actlas_localize.gbps"],
    "scale": ["planning.bytes_per_document", "open.first_row_of_a_store.s"],
    "lookup": ["top.actlas_top_20.warm.ms", "build.index_by_feature.bytes_per_code"],
}
LIBRARIES = {
    "storage": ("tensorstore", "zarrs"),
    "compression": ("torch", "transformers"),
    "extraction": ("torch", "transformers"),
    "peers": ("torch", "transformers"),
    "moments": (),
    "batches": ("torch",),
    "scheduling": ("ray",),
    "welch": ("dask", "scipy"),
    "lookup": ("torch", "transformers"),
    "scale": ("torch", "transformers"),
}


def figures(name: str, *more: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", name, "--quick", "--json", *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout)  # exactly one object
    return found


@pytest.mark.parametrize("name", EXPECTED)
def test_figures_are_finite_and_positive(name: str, tmp_path: Path) -> None:
    for library in LIBRARIES[name]:
        pytest.importorskip(library)
    table = tmp_path / "table.md"
    found = figures(f"benchmarks.{name}", "--out", str(table))
    assert set(EXPECTED[name]) <= set(found)
    wrong = {k: v for k, v in found.items() if not (math.isfinite(v) and v > 0)}
    assert wrong == {}
    text = table.read_text()
    assert text.startswith("# ")
    assert "cores of" in text
    assert "| " in text
    assert str(tmp_path) not in text
