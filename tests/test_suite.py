"""The suite's own rules: property tests that are not random get the same examples everywhere."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def test_examples_do_not_depend_on_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--hypothesis-profile") != "ci":
        pytest.skip("the examples are random")
    drawn: list[tuple[int, str]] = []

    @settings(max_examples=300)
    @given(st.integers(), st.text())
    def draw(number: int, text: str) -> None:
        drawn.append((number, text))

    draw()
    before = drawn.copy()
    drawn.clear()
    constants = "".join(f"A{i} = {i}{i}{i}\nB{i} = 'word {i}'\n" for i in range(1000, 1200))
    (tmp_path / "constants_of_ours.py").write_text(constants)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("constants_of_ours")
    draw()
    assert drawn == before
