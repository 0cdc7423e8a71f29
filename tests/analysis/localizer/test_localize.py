"""The localizer: equal to scipy on transformers' own activations, and one clear error each."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from support.localizer import LABELS, labelled, samples_by_hand, stored
from support.models import oracle
from support.stores import create, fill, plan_for

import actlas
from actlas.analysis.localizer.contrast import split_contrast
from actlas.analysis.localizer.localize import localize
from actlas.analysis.localizer.result import Localization
from actlas.pipeline.extract import extract as extract_module
from actlas.pipeline.forward.strategy import PassStrategy
from actlas.store.errors import ConfigError, HookpointError, NonFiniteError, NotExtractedError
from actlas.store.store import Store

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
pytest.importorskip("dask", reason="dask is not installed")


class Real(NamedTuple):
    """Stores of the published stimuli, and the same activations straight from transformers."""

    alone: Store
    """Every document in a batch of its own, as in the oracle."""
    batched: Store
    documents: list[NDArray[np.float64]]
    documents64: list[NDArray[np.float64]]
    """Of the same model in float64."""
    labels: list[str]


STIMULI = {12: "langloc_*.csv", 512: "langloc_*set1.csv"}
"""Files of the published stimuli, by the longest window: where it cuts none, a fifth is enough."""


def published(shared: Path, length: int) -> list[tuple[str, str]]:
    """The stimuli as the published code reads them: 12 words in lower case, joined, and S or N."""
    found = []
    for file in sorted((shared / "data/langloc_stimuli").glob(STIMULI[length])):
        with file.open(newline="") as lines:
            for row in csv.DictReader(lines):
                words = " ".join(row[f"stim{i}"] for i in range(2, 14))
                found.append((words.lower(), row["stim14"]))
    return found


HOOKPOINTS = [f"resid_post.{i}" for i in range(5)]


def extracted(where: Path, folder: Path, shared: Path, length: int) -> list[Store]:
    """The stimuli one by one, and in batches."""
    return [
        actlas.extract(
            where / f"{n_tokens}.zarr",
            model=str(folder),
            corpus=str(shared / "data/langloc_stimuli" / STIMULI[length]),
            text_field="stim2:stim13",
            label_field="stim14",
            lowercase=True,
            hookpoints=["resid_post.*"],
            max_length=length,
            dtype="float32",
            model_dtype="float32",
            device="cpu",
            executor="inline",
            threads=1,
            tokens_per_batch=n_tokens,
        )
        for n_tokens in (1, 4096)
    ]


@pytest.fixture(scope="module", params=[12, 512], ids=["truncated", "whole"])
def real(
    request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Real:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, length = shared / "models/stories260K", request.param
    where = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        # One by one and whole, where a budget of one token would mean pieces of one token.
        patch.setattr(extract_module, "decide_strategy", lambda *_about: PassStrategy())
        stores = extracted(where, folder, shared, length)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stimuli = published(shared, length)
    found: list[list[NDArray[np.float64]]] = []
    for dtype in (torch.float32, torch.float64):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        documents = []
        for text, _ in stimuli:
            ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id and ids[1] != ids[0]
            states = oracle(model, ids)
            # BOS is one of the 12 tokens; its own row is not a kept token, and is not pooled.
            rows = np.concatenate([states[name][1:] for name in HOOKPOINTS], axis=1)
            documents.append(rows.astype(np.float64))
        found.append(documents)
    return Real(*stores, *found, [label for _, label in stimuli])


def scipy_on(real: Real, documents: list[NDArray[np.float64]], pool: str, signed: bool) -> Any:
    sides: dict[str, list[np.ndarray]] = {"S": [], "N": []}
    for rows, label in zip(documents, real.labels, strict=True):
        sample = rows[-1] if pool == "last" else rows.mean(axis=0)
        sides[label].append(sample if signed else np.abs(sample))
    return stats.ttest_ind(sides["S"], sides["N"], equal_var=False)


def worst(t: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference of t, relative to t, or to 1 where t is smaller.

    t is a difference in standard errors. A rounding in the activations moves it by some 1e-7
    standard errors whatever it is: a t of 0.001 has no six digits, in any library.
    """
    return float((np.abs(t - expected) / np.maximum(np.abs(expected), 1)).max())


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True], ids=["absolute", "signed"])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_as_scipy_on_what_transformers_gives(real: Real, pool: Any, signed: bool) -> None:
    n = len(real.documents)
    assert n in (480, 96) and real.labels.count("S") == n // 2
    found = localize(real.alone, "S:N", pool=pool, signed=signed)
    assert [spec.name for spec in found.mask.key.hookpoints] == HOOKPOINTS
    assert real.alone.plan.n_shards > 1
    expected = scipy_on(real, real.documents, pool, signed)
    assert worst(found.test.t, expected.statistic) < 1e-6
    if pool == "last":
        # The very same rows: here the smallest t agrees too. (Of a document that crosses a
        # shard's border the earlier rows are computed in another length: the mean's last bits.)
        np.testing.assert_allclose(found.test.t, expected.statistic, rtol=1e-9)
    np.testing.assert_allclose(found.test.df, expected.df, rtol=1e-6)
    np.testing.assert_allclose(found.test.p, expected.pvalue, rtol=1e-4, atol=1e-300)
    q = stats.false_discovery_control(expected.pvalue)
    np.testing.assert_allclose(found.q, q, rtol=1e-4, atol=1e-300)
    assert found.n_selected == found.k == int(1 / 100 * 64 * 5) == 3
    best = np.argsort(-expected.statistic, kind="stable")[:3]
    assert sorted(best) == np.flatnonzero(found.selected).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True], ids=["absolute", "signed"])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_in_batches_it_is_within_float32_of_the_model(real: Real, pool: Any, signed: bool) -> None:
    """Batches change the last bits of a row, by less than float32 itself differs from float64."""
    found = localize(real.batched, "S:N", pool=pool, signed=signed)
    t = scipy_on(real, real.documents, pool, signed).statistic
    own = worst(t, scipy_on(real, real.documents64, pool, signed).statistic)
    assert worst(found.test.t, t) < 2 * own < 2e-5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any]]:
    rng = np.random.default_rng(0)
    lengths = [0, 3, 70, 1, 0, 12, 5, 33, 8, 0, 2, 150, 9, 4] * 3
    columns = labelled(lengths, rng.permutation([0, 1, 2, -1, 0, 1] * 7))
    return stored(tmp_path_factory.mktemp("small") / "s.zarr", columns, shard_rows=64)


def by_hand(store: Store, by_t: dict[str, Any], label: str, pool: str = "last") -> np.ndarray:
    group = LABELS.index(label)
    parts = [samples_by_hand(store, by_t[name], group, pool, False) for name in by_t]
    return np.concatenate(parts, axis=1)


def test_the_table(small: tuple[Store, dict[str, Any]]) -> None:
    store, by_t = small
    found = localize(store, ("N", "S"), top="10%")
    a, b = by_hand(store, by_t, "N"), by_hand(store, by_t, "S")
    expected = stats.ttest_ind(a, b, equal_var=False)
    table = found.table
    assert table["hookpoint"].tolist() == ["resid_post.0"] * 24 + ["mlp.1"] * 40
    assert table["unit"].tolist() == [*range(24), *range(40)]
    np.testing.assert_allclose(table["t"], expected.statistic, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table["df"], expected.df, rtol=1e-9)
    np.testing.assert_allclose(table["p"], expected.pvalue, rtol=1e-9)
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(table["p"]), rtol=1e-12)
    for side, samples in (("pos", a), ("neg", b)):
        np.testing.assert_allclose(table[f"mean_{side}"], samples.mean(0), rtol=1e-12)
        np.testing.assert_allclose(table[f"var_{side}"], samples.var(0, ddof=1), rtol=1e-12)
        assert set(table[f"n_{side}"]) == {len(samples)}
    spread = np.sqrt(
        ((len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)) / (len(a) + len(b) - 2)
    )
    np.testing.assert_allclose(table["cohen_d"], (a.mean(0) - b.mean(0)) / spread, rtol=1e-9)
    best = table["t"].nlargest(6).index
    assert sorted(best) == table.index[table["selected"]].tolist()
    assert found.t_threshold == table["t"][best].min()
    mirrored = localize(store, ("S", "N"), top="10%")
    np.testing.assert_array_equal(mirrored.test.t, -found.test.t)


def test_documents_are_counted(small: tuple[Store, dict[str, Any]]) -> None:
    store, by_t = small
    found = localize(store, "S:N", pool="mean")
    codes, lengths = store.documents.label_codes, np.diff(store.documents.start)
    assert codes is not None
    for condition, code in zip(found.conditions, (0, 1), strict=True):
        assert condition.n_documents == ((codes == code) & (lengths > 0)).sum()
        assert condition.n_without_tokens == ((codes == code) & (lengths == 0)).sum() > 0
    assert found.n_ignored == ((codes == -1) | (codes == 2)).sum() > 0
    other = localize(store, "other:S")
    np.testing.assert_allclose(
        other.test.t,
        stats.ttest_ind(by_hand(store, by_t, "other"), by_hand(store, by_t, "S"), equal_var=False)[
            0
        ],
        rtol=1e-9,
        atol=1e-12,
    )


def test_hookpoints_are_chosen_in_the_stores_order(small: tuple[Store, dict[str, Any]]) -> None:
    store, _ = small
    whole, part = localize(store, "S:N", top=5), localize(store, "S:N", top=5, hookpoints="mlp.*")
    assert [spec.name for spec in part.mask.key.hookpoints] == ["mlp.1"]
    np.testing.assert_array_equal(part.test.t, whole.test.t[24:])
    both = localize(store, "S:N", top=5, hookpoints=["mlp.?", "resid**"])
    assert both.mask == whole.mask
    for asked in ("nothing", "mlp.1,nothing", "resid*", "", []):
        with pytest.raises(HookpointError, match=r"this store has resid_post\.0, mlp\.1"):
            localize(store, "S:N", hookpoints=asked)


def test_the_key_tells_two_masks_apart(small: tuple[Store, dict[str, Any]]) -> None:
    store, _ = small
    asked: list[dict[str, Any]] = [
        {},
        {"pool": "mean"},
        {"signed": True},
        {"top": "2%"},
        {"hookpoints": "mlp.1"},
        {"contrast": "N:S"},
        {"contrast": "S:other"},
    ]
    keys = [localize(store, **{"contrast": "S:N", **options}).mask.key for options in asked]
    assert len({key.model_dump_json() for key in keys}) == len(asked)
    key = keys[0]
    assert key.plan_sha256 == store.plan_sha256
    assert key.versions["scipy"] and key.versions["extract.numpy"] == np.__version__


@pytest.mark.slow
def test_constant_units_and_ties(tmp_path: Path) -> None:
    """As of a dead unit, or one that a norm holds: the run goes on, and k is never exceeded."""
    rng = np.random.default_rng(1)
    columns = labelled([3] * 20, [0, 1] * 10)
    values = rng.standard_normal((60, 24)).astype(np.float32)
    doc = np.repeat(np.arange(20), 3)
    values[:, 2] = 0.1
    values[:, 3] = values[:, 7] = values[:, 5] = np.where(doc % 2 == 0, 9, 1) + values[:, 4] / 9
    values[:, 10] = np.where(doc % 2 == 0, 3.0, 1.0)  # constant in both, and different
    values[:, 11] = np.where(doc % 2 == 0, 1.0, 3.0)
    store, _ = stored(tmp_path / "s.zarr", columns, {"resid_post.0": values}, shard_rows=16)
    found = localize(store, "S:N", top=2, hookpoints="resid_post.0")
    assert np.isnan(found.test.t[2]) and np.isnan(found.q[2]) and not found.selected[2]
    assert (found.test.t[10], found.test.t[11]) == (np.inf, -np.inf)
    assert (found.test.p[10], found.q[11]) == (0, 0)
    assert np.flatnonzero(found.selected).tolist() == [3, 10], "of tied units, the lowest"
    assert np.flatnonzero(localize(store, "S:N", top=3).selected).tolist() == [3, 5, 10]
    everything = localize(store, "S:N", top="100%", hookpoints="resid_post.0")
    assert (everything.k, everything.n_selected) == (24, 23), "what was not tested is not selected"
    found.save(tmp_path / "out")
    localize(store, "N:S", top=1, hookpoints="resid_post.0").save(tmp_path / "infinite")


def test_not_a_number(tmp_path: Path) -> None:
    columns = labelled([3, 40, 5, 8, 6, 9], [0, 1, 0, 1, 0, 1])
    values = np.random.default_rng(0).standard_normal((71, 24)).astype(np.float32)
    values[2, 6], values[20, 7], values[55, 8] = np.nan, np.inf, -np.inf
    values[10, 9] = np.nan  # not a last token's
    store, by_t = stored(tmp_path / "s.zarr", columns, {"resid_post.0": values}, shard_rows=16)
    with pytest.raises(
        NonFiniteError, match=r"samples of resid_post\.0 \(2 of 24 units\)\. "
    ) as no:
        localize(store, "S:N")
    assert no.value.details["units"] == {"resid_post.0": 2}
    with pytest.raises(NonFiniteError, match=r"resid_post\.0 \(4 of 24 units\)"):
        localize(store, "S:N", pool="mean")
    found = localize(store, "S:N", on_nonfinite="omit", top="100%")
    assert np.flatnonzero(np.isnan(found.test.t)).tolist() == [6, 8]
    assert (found.n_nonfinite_units, found.n_selected) == (2, 62)
    assert found.table["q"].isna().sum() == 2
    assert found.table["n_pos"][6] == 2, "enough for a test, but of other documents than the rest"
    rest = np.setdiff1d(np.arange(64), [6, 8])
    a, b = by_hand(store, by_t, "S"), by_hand(store, by_t, "N")
    expected = stats.ttest_ind(a[:, rest], b[:, rest], equal_var=False)
    np.testing.assert_allclose(found.test.t[rest], expected.statistic, rtol=1e-9)
    q = stats.false_discovery_control(expected.pvalue)
    np.testing.assert_allclose(found.q[rest], q, rtol=1e-9)
    found.save(tmp_path / "out")
    clean = localize(store, "S:N", hookpoints="mlp.1")
    assert clean.n_nonfinite_units == 0


@pytest.mark.slow
def test_saved_numbers_are_the_very_numbers(
    small: tuple[Store, dict[str, Any]], tmp_path: Path
) -> None:
    import json

    found = localize(small[0], "S:N", pool="mean")
    found.save(tmp_path / "out")
    with (tmp_path / "out/units.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    table = found.table
    assert list(rows[0]) == list(table.columns)
    for name in ("t", "df", "p", "q", "cohen_d", "mean_pos", "var_neg"):
        assert [float(row[name]) for row in rows] == table[name].tolist()
    assert [row["selected"] == "True" for row in rows] == found.selected.tolist()
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["contrast"]["positive"]["n_documents"] == int(rows[0]["n_pos"])
    assert summary["n_significant"] == found.n_significant
    assert summary["key"]["pool"] == "mean"
    for picture in ("brain_map", "layers", "t_histogram"):
        assert (tmp_path / f"out/{picture}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(actlas.ActlasError, match="left as it is"):
        found.save(tmp_path / "out")


def test_it_shows_itself_escaped(tmp_path: Path) -> None:
    columns = labelled([3] * 6, [0, 1] * 3, names=("<b>$x", "日本", "other"))
    store, _ = stored(tmp_path / "s.zarr", columns)
    found = localize(store, "<b>$x:日本")
    assert "<b>$x (3 documents) against 日本 (3)" in repr(found)
    html = found._repr_html_()
    assert "&lt;b&gt;$x" in html and "<b>" not in html and "mlp.1" in html
    found.save(tmp_path / "out")  # no glyph for a label, and a dollar that begins no formula


def message_of(store: Store, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        localize(store, *arguments, **options)
    return str(refused.value)


def test_contrasts_that_make_no_sense(small: tuple[Store, dict[str, Any]], tmp_path: Path) -> None:
    store, _ = small
    assert "no label 'Q'. This store's labels are: S, N, other." in message_of(store, "S:Q")
    assert "no label 'P' and no label 'Q'" in message_of(store, "P:Q")
    assert "two labels, POSITIVE:NEGATIVE" in message_of(store, "S")
    assert "two different labels" in message_of(store, "S:S")
    assert "got 'median', expected last or mean" in message_of(store, "S:N", pool="median")
    assert "expected a share" in message_of(store, "S:N", top="0%")
    columns = labelled([3, 4, 0, 5], [0, 0, 1, 1])
    few, _ = stored(tmp_path / "few.zarr", columns)
    said = message_of(few, "S:N")
    assert "condition 'N' has 1 document with tokens (and 1 without)" in said
    assert "condition 'other' has 0 documents" in message_of(few, "S:other")
    columns.label, columns.label_names = None, ()
    bare, _ = stored(tmp_path / "bare.zarr", columns)
    assert "expected documents with labels, got none" in message_of(bare, "S:N")


def test_labels_with_colons() -> None:
    names = ["a:b", "c", "a", "b:c"]
    assert split_contrast("c:a:b", names) == ("c", "a:b")
    with pytest.raises(ConfigError, match="can be read as"):
        split_contrast("a:b:c", names)
    assert split_contrast(("a", "b:c"), names) == ("a", "b:c")


def test_a_store_that_is_not_finished(tmp_path: Path) -> None:
    columns = labelled([100] * 12, [0, 1] * 6)
    store = create(tmp_path / "s.zarr", plan_for(columns), columns)
    fill(store, shards=range(2))
    with pytest.raises(NotExtractedError, match="3 of 5 shards are missing"):
        localize(store, "S:N")


def test_from_a_path_and_without_warnings(small: tuple[Store, dict[str, Any]]) -> None:
    store, _ = small
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = localize(store.path, "S:N")
    assert isinstance(found, Localization)
    assert found.mask == localize(Path(store.path), "S:N").mask
