"""Welch's test against scipy's own, and selection against the published code's defects."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actlas.analysis.statistics.welch import benjamini_hochberg, count_of, select, welch
from actlas.store.errors import ConfigError
from actlas.store.statistics.moments import Moments

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


def scipy_test(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ours must be silent, scipy's need not
        found = stats.ttest_ind(a, b, equal_var=False)
    return found.statistic, np.asarray(found.df), found.pvalue


@given(
    seed=st.integers(0, 2**32 - 1),
    n_a=st.integers(2, 300),
    n_b=st.integers(2, 300),
    shift=st.floats(-30, 30),
    log_scale=st.tuples(st.integers(-40, 37), st.integers(-3, 3)),
)
def test_as_scipy(seed: int, n_a: int, n_b: int, shift: float, log_scale: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    scale, ratio = 10.0 ** log_scale[0], 10.0 ** log_scale[1]
    a = (rng.standard_normal((n_a, 5)) + shift) * scale
    b = rng.standard_normal((n_b, 5)) * ratio * scale
    ours = welch(Moments.of(a), Moments.of(b))
    for got, expected in zip(ours, scipy_test(a, b), strict=False):
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@given(
    a=hnp.arrays(np.float64, (7, 3), elements=st.sampled_from([-2.0, 0.0, 0.1, 1.0])),
    b=hnp.arrays(np.float64, (4, 3), elements=st.sampled_from([-2.0, 0.0, 0.1, 1.0])),
)
def test_units_that_hardly_vary(a: np.ndarray, b: np.ndarray) -> None:
    ours = welch(Moments.of(a), Moments.of(b))
    constant = (np.ptp(a, axis=0) == 0) & (np.ptp(b, axis=0) == 0)
    t, df, p = scipy_test(a, b)
    for got, expected in zip(ours, (t, df, p), strict=False):
        np.testing.assert_allclose(got[~constant], expected[~constant], rtol=1e-9, atol=1e-12)
    # scipy's own variance of a constant 0.1 is 1e-34, not 0: here the arithmetic is exact.
    same = constant & (a[0] == b[0])
    assert np.isnan(ours.t[same]).all() and np.isnan(ours.p[same]).all()
    differ = constant & (a[0] != b[0])
    np.testing.assert_array_equal(ours.t[differ], np.inf * np.sign(a[0] - b[0])[differ])
    assert (ours.p[differ] == 0).all() and (ours.df[constant] == 1).all()


def test_constant_units_as_scipy() -> None:
    a, b = np.ones((5, 2)), np.tile([1.0, 3.0], (4, 1))
    ours, (t, df, p) = welch(Moments.of(a), Moments.of(b)), scipy_test(a, b)
    np.testing.assert_array_equal(ours.t, t)
    np.testing.assert_array_equal(ours.df, df)
    np.testing.assert_array_equal(ours.p, p)
    assert np.isnan(t[0]) and t[1] == -np.inf


def test_too_few_values_are_untested() -> None:
    a = np.array([[1.0, 1.0], [np.nan, 2.0], [np.nan, 3.0]])
    ours = welch(Moments.of(a), Moments.of(np.eye(2)))
    assert all(np.isnan(column[0]) and np.isfinite(column[1]) for column in ours)


def test_no_underflow_of_tiny_variances() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((50, 4)), 2 * rng.standard_normal((20, 4))
    # Powers of two: the same numbers, with variances whose square is below the smallest float.
    tiny = welch(Moments.of(a * 2.0**-300), Moments.of(b * 2.0**-300))
    plain = welch(Moments.of(a), Moments.of(b))
    for got, expected in zip(tiny, plain, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_cohen_d_by_hand() -> None:
    a, b = np.array([[1.0], [2.0], [6.0]]), np.array([[0.0], [1.0]])
    pooled = (2 * np.var(a, ddof=1) + 1 * np.var(b, ddof=1)) / 3
    assert welch(Moments.of(a), Moments.of(b)).cohen_d[0] == pytest.approx(
        (3.0 - 0.5) / np.sqrt(pooled), rel=1e-14
    )


@given(
    hnp.arrays(
        np.float64, st.integers(0, 60), elements=st.floats(0, 1) | st.just(np.nan) | st.just(0.5)
    )
)
def test_q_as_scipy_over_finite_p(p: np.ndarray) -> None:
    q = benjamini_hochberg(p)
    finite = ~np.isnan(p)
    np.testing.assert_array_equal(np.isnan(q), ~finite)
    if finite.any():
        np.testing.assert_array_equal(q[finite], stats.false_discovery_control(p[finite]))


def test_q_by_hand() -> None:
    q = benjamini_hochberg(np.array([0.01, np.nan, 0.04, 0.03, 0.2]))
    np.testing.assert_allclose(q[[0, 2, 3, 4]], [0.04, 0.16 / 3, 0.16 / 3, 0.2])


@given(
    hnp.arrays(
        np.float64,
        st.integers(0, 40),
        elements=st.sampled_from([np.nan, -np.inf, np.inf, -1.0, -0.0, 0.0, 2.0]),
    ),
    st.integers(1, 50),
)
def test_selection_by_brute_force(t: np.ndarray, k: int) -> None:
    candidates = [i for i in range(len(t)) if not np.isnan(t[i])]
    expected = sorted(candidates, key=lambda i: (-t[i], i))[:k]
    assert select(t, k).tolist() == expected


def test_ties_never_select_more_than_k() -> None:
    t = np.array([1.0, 5.0, 5.0, 5.0, 0.0])
    for k in range(1, 6):
        assert len(select(t, k)) == k
    assert select(t, 2).tolist() == [1, 2]
    ranks = np.unique(-t, return_inverse=True)[1]  # the published selection: 3 units for k = 1
    assert (ranks < 1).sum() == 3


@pytest.mark.parametrize("percent", ["1", "0.125", "0.25", "0.5", "29", "100", "1e-9", "5.0"])
@pytest.mark.parametrize(("hidden", "n_layers"), [(256, 6), (4096, 32), (10, 10)])
def test_a_share_is_the_published_count(percent: str, hidden: int, n_layers: int) -> None:
    n = hidden * n_layers
    assert count_of(f"{percent}%", n) == max(1, int(float(percent) / 100 * n))
    assert count_of(f" {percent} % ", n) == count_of(f"{percent}%", n)


def test_a_count() -> None:
    assert (count_of("128", 500), count_of(500, 500), count_of(1, 500)) == (128, 500, 1)


BAD = ["0%", "-1%", "101%", "nan%", "inf%", "%", "", "0", "-3", "501", "1.5", "x", "1%%", 0, 501]


@pytest.mark.parametrize("top", BAD)
def test_a_top_that_makes_no_sense(top: str | int) -> None:
    with pytest.raises(ConfigError, match=r"top: got .* expected a share"):
        count_of(top, 500)


def test_moments_in_any_pieces_give_the_same_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((90, 6)) + 1e4, rng.standard_normal((70, 6)) + 1e4 + 0.3
    expected, _, _ = scipy_test(a, b)
    for cuts in itertools.product((1, 40, 89), (3, 35)):
        parts_a, parts_b = np.split(a, [cuts[0]]), np.split(b, [cuts[1]])
        found = welch(
            Moments.combine(map(Moments.of, parts_a)), Moments.combine(map(Moments.of, parts_b))
        )
        np.testing.assert_allclose(found.t, expected, rtol=1e-9)
