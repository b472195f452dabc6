"""The comparison's arithmetic: order of runs, and an interval that covers what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hetserve.bench import pairs


def test_order_alternates_and_only_switches_need_a_warm_up() -> None:
    order = pairs.turns(3)
    assert "".join("AB"[turn.system] for turn in order) == "ABBAAB"
    assert [turn.pair for turn in order] == [0, 0, 1, 1, 2, 2]
    assert [turn.switched for turn in order] == [True, True, False, True, False, True]
    for count in range(1, 9):
        firsts = [pairs.turns(count)[2 * pair].system for pair in range(count)]
        assert abs(firsts.count(0) - firsts.count(1)) <= 1  # neither is favoured


def test_six_pairs_give_min_to_max_and_fewer_give_nothing() -> None:
    assert pairs.interval([3, 1, 2, 6, 5, 4]) == (1, 6)
    for count in range(6):
        assert pairs.interval(list(range(count))) is None


@pytest.mark.parametrize("count", [6, 7, 8, 9, 12, 20, 40])
def test_the_interval_covers_the_median_as_often_as_it_says(count: int) -> None:
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(8000, count))  # a skewed distribution; its median is log 2
    inside = 0
    for row in samples:
        bounds = pairs.interval(row.tolist())
        assert bounds is not None
        inside += bounds[0] <= math.log(2) <= bounds[1]
    assert inside / len(samples) > 0.95 - 0.008
    if count > 8:  # and it is no wider than it must be: one order statistic less on each side would cover too seldom
        ordered = np.sort(samples, axis=1)
        k = next(k for k in range(count) if ordered[0, k] == pairs.interval(samples[0].tolist())[0])  # type: ignore[index]
        narrower = ((ordered[:, k + 1] <= math.log(2)) & (math.log(2) <= ordered[:, count - 2 - k])).mean()
        assert narrower < 0.955


def test_ratios_are_taken_within_pairs() -> None:
    ours = [{"x": 2.0, "y": 1, "n": None, "z": 0.0}, {"x": 30.0, "y": 1, "n": None, "z": 1.0}]
    theirs = [{"x": 1.0, "y": 2, "n": None, "z": 1.0}, {"x": 10.0, "y": 2, "n": None, "z": 1.0}]
    found = pairs.ratios(ours, theirs)
    assert found["x"]["pairs"] == [2.0, 3.0] and found["x"]["median"] == 2.5
    assert found["x"]["ci95"] is None and "6" in found["x"]["why_no_ci95"]
    assert set(found) == {"x", "y"}  # no ratio where a number is missing or 0
    six = pairs.ratio([1.0, 1.1, 0.9, 1.2, 1.0, 1.3])
    assert six["ci95"] == [0.9, 1.3] and "why_no_ci95" not in six


def test_medians_keep_what_is_no_number() -> None:
    runs = [
        {"x": 1, "flag": True, "name": "a", "none": None},
        {"x": 3, "flag": False, "name": "a", "none": None},
        {"x": 8, "flag": True, "name": "a", "none": None},
    ]
    assert pairs.medians(runs) == {"x": 3, "flag": True, "name": "a", "none": None}
