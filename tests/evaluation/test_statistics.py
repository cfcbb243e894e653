"""Intervals and p-values are SciPy's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sip_plugin.evaluation.statistics import mcnemar, wilson_interval


@pytest.mark.parametrize(("share", "count"), [(0, 10), (1, 10), (0.3, 10), (0.75, 1000), (1 / 3, 3)])
def test_the_interval_is_scipys(share, count):
    expected = binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    assert wilson_interval(share, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_p_value_is_scipys(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_many_images_that_tell_two_networks_apart_are_no_overflow():
    assert mcnemar(5000, 5000) == 1
    assert 0 < mcnemar(4800, 5200) < 1e-3
