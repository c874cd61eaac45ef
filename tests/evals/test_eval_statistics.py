"""Intervals and tests against their definitions."""

from __future__ import annotations

from itertools import product
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wootz.evals import sign_test, wilson_interval


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilsons_bounds_are_where_the_score_test_turns(trials, share, confidence):
    """Wilson's own definition: p is in the interval as long as |share - p| <= z sqrt(p (1 - p) / n)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for bound in (bounds := wilson_interval(share * trials, trials, confidence)):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / trials, abs=1e-9)
    assert bounds[0] <= share + 1e-12
    assert bounds[1] >= share - 1e-12


def test_wilson_at_the_edges():
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # as printed in textbooks
    assert wilson_interval(0, 0) == (0, 1)
    assert wilson_interval(5, 5)[1] == 1
    assert 0.5 < wilson_interval(5, 5)[0] < 0.6


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (3, 0), (0, 3), (5, 1), (4, 4), (9, 2)])
def test_the_sign_test_counts_all_outcomes(better, worse):
    outcomes = [sum(signs) for signs in product((0, 1), repeat=better + worse)]
    extreme = min(better, worse)
    as_far = sum(heads <= extreme or heads >= better + worse - extreme for heads in outcomes)
    assert sign_test(better, worse) == pytest.approx(as_far / len(outcomes))
