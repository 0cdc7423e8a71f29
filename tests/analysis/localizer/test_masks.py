"""Masks: what is in them, what is refused, and the random control."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import plan_for, words_columns

from actlas.analysis.localizer.masks import Mask, MaskKey
from actlas.store.errors import MaskError
from actlas.store.format.schema import HookpointSpec
from actlas.store.format.sealing import seal

PLAN = plan_for(words_columns(0, 5, 4))
WIDTHS = {"resid_post.0": 24, "mlp.1": 40}


def key(**changes: Any) -> MaskKey:
    fields: dict[str, Any] = {
        "hookpoints": PLAN.hookpoints,
        "positive": "S",
        "negative": "N",
        "pool": "last",
        "signed": False,
        "top": "1%",
        "versions": {"python": "3.11"},
    }
    return MaskKey.of(PLAN, "9" * 64, **{**fields, **changes})


UNITS = {"mlp.1": (0, 3, 39), "resid_post.0": (5,)}


@pytest.mark.parametrize("units", [{}, UNITS, {"mlp.1": tuple(range(40))}])
@pytest.mark.parametrize("seed", [None, 0, 12])
def test_what_is_saved_is_loaded(tmp_path: Path, units: Any, seed: int | None) -> None:
    mask = Mask(key(positive="пос:\n<b>"), units, seed)
    mask.save(tmp_path / "mask.json")
    assert [p.name for p in tmp_path.iterdir()] == ["mask.json"]
    for loaded in (Mask.load(tmp_path / "mask.json"), Mask.load(tmp_path)):
        assert loaded == mask and loaded.key == mask.key and type(loaded) is Mask
        assert list(loaded.units) == [n for n in WIDTHS if n in units]
    assert pickle.loads(pickle.dumps(mask)) == mask


def test_the_file_holds_the_whole_key(tmp_path: Path) -> None:
    Mask(key(), UNITS).save(tmp_path / "m.json")
    record = json.loads((tmp_path / "m.json").read_text())["record"]
    assert set(record["key"]) == set(MaskKey.model_fields)
    assert record["key"]["weights_sha256"] == PLAN.model.weights_sha256
    assert record["key"]["stimuli_sha256"] == PLAN.corpus.fingerprint
    assert [h["width"] for h in record["key"]["hookpoints"]] == [24, 40]
    assert record["units"] == {"resid_post.0": [5], "mlp.1": [0, 3, 39]}


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    Mask(key(), UNITS).save(path)
    data = path.read_bytes()
    for at in range(0, len(data), 7):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(MaskError, match=r"changed or truncated"):
            Mask.load(path)
    for cut in (0, 1, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(MaskError) as refused:
            Mask.load(path)
        assert refused.value.details["field"] == "sha256"
    path.write_bytes(data + b" ")
    with pytest.raises(MaskError):
        Mask.load(path)


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff\xfe", b'{"units": {}}', b"[" * 5000])
def test_foreign_files_are_refused(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "m.json").write_bytes(body)
    with pytest.raises(MaskError):
        Mask.load(tmp_path / "m.json")


def test_sealed_records_that_are_no_mask(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_bytes(seal(PLAN))
    with pytest.raises(MaskError, match="not a mask that this version reads") as refused:
        Mask.load(tmp_path / "m.json")
    assert refused.value.details["field"] == "format"
    with pytest.raises(MaskError, match=r"`actlas\.localize` makes one"):
        Mask.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({"mlp.1": (3, 1)}, "ascending"),
        ({"mlp.1": (3, 3)}, "ascending"),
        ({"mlp.1": (-1, 3)}, r"in \[0, 40\)"),
        ({"mlp.1": (3, 40)}, r"in \[0, 40\)"),
        ({"resid_post.9": (1,)}, "was not tested"),
    ],
)
def test_units_that_cannot_be(units: Any, words: str) -> None:
    with pytest.raises(MaskError, match=words) as refused:
        Mask(key(), units)
    assert refused.value.details["field"] == "units"


def test_a_hookpoint_without_units_is_dropped() -> None:
    assert Mask(key(), {"mlp.1": (), "resid_post.0": (1,)}).units == {"resid_post.0": (1,)}


@given(st.sets(st.integers(0, 63)), st.integers(0, 2**32))
def test_random_masks(chosen: set[int], seed: int) -> None:
    mask = Mask.from_flat(key(), np.array(sorted(chosen), dtype=np.int64))
    assert np.flatnonzero(mask.selected()).tolist() == sorted(chosen)
    assert mask.n_units == len(chosen)
    if len(chosen) > 32:
        with pytest.raises(MaskError, match="select fewer units"):
            mask.random(seed)
        return
    drawn = mask.random(seed)
    assert drawn.seed == seed and drawn.key == mask.key
    assert drawn.n_units == mask.n_units
    assert not (drawn.selected() & mask.selected()).any()
    assert drawn == mask.random(seed)
    outside = [i for i in range(64) if i not in chosen]
    expected = np.random.default_rng(seed).choice(outside, len(chosen), replace=False)
    assert np.flatnonzero(drawn.selected()).tolist() == sorted(expected.tolist())


def test_seeds_differ_and_every_unit_outside_can_be_drawn() -> None:
    mask = Mask(key(), UNITS)
    drawn = [mask.random(seed).selected() for seed in range(200)]
    assert len({tuple(np.flatnonzero(d)) for d in drawn}) > 190
    np.testing.assert_array_equal(np.any(drawn, axis=0), ~mask.selected())


def test_an_empty_mask() -> None:
    empty = Mask(key(), UNITS).empty()
    assert empty.n_units == 0 and empty.units == {} and not empty.selected().any()
    assert empty.random(1).n_units == 0


CHANGES = {
    "weights_sha256": "a" * 64,
    "config_sha256": "b" * 64,
    "architecture": "GPT2LMHeadModel",
    "d_model": 25,
    "n_layers": 3,
}


@pytest.mark.parametrize("field", CHANGES)
def test_another_model_is_refused_by_the_field(field: str) -> None:
    mask = Mask(key(), UNITS)
    mask.check_model(PLAN.model)
    other = PLAN.model.model_copy(update={field: CHANGES[field], "id": "other"})
    with pytest.raises(MaskError, match=rf"{field} of other is {CHANGES[field]}") as refused:
        mask.check_model(other)
    assert refused.value.details["field"] == field
    assert refused.value.details["expected"] == getattr(PLAN.model, field)


def test_the_same_weights_elsewhere_are_the_same_model() -> None:
    moved = PLAN.model.model_copy(update={"id": "/elsewhere", "compute_dtype": "bfloat16"})
    Mask(key(), UNITS).check_model(moved)


def test_a_mask_shows_itself_escaped() -> None:
    mask = Mask(key(positive="<script>"), UNITS, seed=3)
    assert "4 of 64 units (random units, seed 3) in 2 of 2 hookpoints" in repr(mask)
    assert "<script>" not in mask._repr_html_() and "&lt;script&gt;" in mask._repr_html_()


def test_a_key_is_strict() -> None:
    with pytest.raises(ValueError, match="extra"):
        MaskKey.model_validate({**key().model_dump(), "more": 1})
    with pytest.raises(ValueError, match="pool"):
        key(pool="sum")
    spec = HookpointSpec(name="a", module="a", side="input", width=3)
    assert key(hookpoints=(spec,)).n_units == 3
