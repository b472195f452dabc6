"""Layers over stages of linear time against every cut there is; shares of devices against a linear program."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from hetserve.solve.fill import cycle_s, least_sum, shared_rate, shortest_cycle

TIMES = st.floats(0.01, 10.0)


def every_cut(layers: int, most: list[int]):
    return (counts for counts in product(*(range(1, cap + 1) for cap in most)) if sum(counts) == layers)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 9), st.data())
def test_cuts_are_as_good_as_the_best(layers, data) -> None:
    stages = data.draw(st.integers(1, 4))
    slopes, fixed_s = (data.draw(st.lists(TIMES, min_size=stages, max_size=stages)) for _ in range(2))
    most = data.draw(st.lists(st.integers(0, 9), min_size=stages, max_size=stages))
    waves = data.draw(st.integers(1, stages))
    cuts = list(every_cut(layers, most))
    found, least = shortest_cycle(layers, fixed_s, slopes, most, waves), least_sum(layers, slopes, most)
    assert (found is None) == (least is None) == (not cuts)
    if found is not None and least is not None:
        best_s = min(cycle_s(counts, fixed_s, slopes, waves) for counts in cuts)
        assert found[0] == pytest.approx(cycle_s(found[1], fixed_s, slopes, waves)) and tuple(found[1]) in cuts
        assert found[0] <= best_s * (1.001 if waves < stages else 1 + 1e-9)
        if waves == stages:
            as_good = [counts for counts in cuts if cycle_s(counts, fixed_s, slopes, waves) <= best_s * (1 + 1e-12)]
            assert np.dot(found[1], slopes) == pytest.approx(min(np.dot(counts, slopes) for counts in as_good)), "of equals the least sum"
        assert np.dot(least, slopes) == pytest.approx(min(np.dot(counts, slopes) for counts in cuts))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.sampled_from([0.0, 0.2, 1.0, 4.0])), min_size=1, max_size=5))
def test_shares_are_the_optimum_of_the_linear_program(rates) -> None:
    first, second = (np.array(one) for one in zip(*rates, strict=True))
    rate, shares = shared_rate(first, second)
    count = len(first)
    bounds = [(0, 1)] * count + [(0, None)]
    rows = np.array([[*-first, 1.0], [*second, 1.0]])
    best = linprog([0.0] * count + [-1.0], A_ub=rows, b_ub=[0.0, second.sum()], bounds=bounds)
    assert rate == pytest.approx(-best.fun, abs=1e-9)
    assert min(np.dot(shares, first), np.dot(1 - np.array(shares), second)) == pytest.approx(rate, abs=1e-9)
