"""Pictures: their formats and resolution, titles without paths, no panel without a curve."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlas.analysis.figures import Figures, shown, title_name
from actlas.analysis.sae.train.curves import Point, draw
from actlas.store.errors import ConfigError

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def points(**fields: Any) -> list[Point]:
    fixed = {"loss": 1.0, "explained_variance": 0.5, "l0": 4.0, "dead_share": 0.0, "lr": 1e-3}
    return [Point(step=i, tokens=64 * i, **{**fixed, **fields}) for i in range(1, 6)]


@pytest.mark.slow
def test_every_format_is_written_and_the_same_each_time(tmp_path: Path) -> None:
    figures = Figures.parse("png, SVG,pdf", 40)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        figures.save(draw(points(), "topk 4 → 8", k=4), tmp_path / name, "curves")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["curves.pdf", "curves.png", "curves.svg"] == sorted(figures.names("curves"))
    beginnings = {"pdf": b"%PDF-", "png": b"\x89PNG", "svg": b"<?xml"}
    for file in files:
        data = (tmp_path / "a" / file).read_bytes()
        assert data.startswith(beginnings[file[-3:]])
        assert data == (tmp_path / "b" / file).read_bytes(), "no date, no random id"
    width, _ = struct.unpack(">II", (tmp_path / "a/curves.png").read_bytes()[16:24])
    assert width == 10 * 40, "inches times dpi"


@pytest.mark.parametrize("formats", ["jpg", "", "png,none", "png,gif"])
def test_unknown_formats_are_refused(formats: str) -> None:
    with pytest.raises(ConfigError, match="expected png, svg, pdf, several of them"):
        Figures.parse(formats)
    assert Figures.parse("none").names("x") == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("/data/me/models/gpt2/", "gpt2"),
        ("~/gpt2", "gpt2"),
        ("./gpt2", "gpt2"),
        (r"C:\models\gpt2", "gpt2"),
        ("file:///data/gpt2", "gpt2"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("gpt2", "gpt2"),
        ("builtin:actlas-6m", "builtin:actlas-6m"),
        ("s3://bucket/corpus/a.jsonl", "s3://bucket/corpus/a.jsonl"),
    ],
)
def test_titles_have_no_path_of_a_machine(name: str, title: str) -> None:
    assert title_name(name) == title


def test_numbers_are_rounded_alike() -> None:
    assert [shown(x) for x in (8.716, -0.5, 1234.5)] == ["8.72", "-0.50", "1,234.50"]


@pytest.mark.parametrize(
    ("fields", "k", "panels", "said"),
    [
        ({}, 4, 2, "L0 4 and no dead features throughout"),
        ({}, None, 3, "no dead features throughout"),
        ({"dead_share": 0.25}, 4, 3, "L0 4 throughout"),
        ({"dead_share": 0.25}, None, 4, ""),
        ({"l0": 3.5}, 4, 3, "no dead features throughout"),
    ],
)
def test_no_panel_of_what_never_changes(
    fields: dict[str, float], k: int | None, panels: int, said: str
) -> None:
    figure = draw(points(**fields), "a title", (0.6, "held-out"), k)
    assert len(figure.axes) == panels
    assert all(len(axis.lines[0].get_xdata()) == 5 for axis in figure.axes)
    title = figure.get_suptitle()
    assert title == ("a title" + f"\n{said}" * bool(said))


def test_the_held_out_curve_is_drawn() -> None:
    some = points()
    some[0] = some[0]._replace(held_out_explained_variance=0.1)
    some[4] = some[4]._replace(held_out_explained_variance=0.4)
    axis = draw(some, "a title", (0.4, "held-out"), 4).axes[1]
    [held_out] = [line for line in axis.lines if line.get_label() == "held-out rows"]
    np.testing.assert_array_equal(held_out.get_xydata(), [[64, 0.1], [320, 0.4]])


def test_colours_tell_the_selected_units_apart() -> None:
    from actlas.analysis.localizer.plots import _scale

    t = np.concatenate([np.linspace(-1, 1, 10_000), np.linspace(5, 20, 20)])
    norm, beyond = _scale(t, t >= 5)
    assert norm.vmax == -norm.vmin == pytest.approx(np.percentile(t[t >= 5], 90))
    assert beyond == "max"
