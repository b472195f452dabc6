"""Curves: through their points, flat before them, in proportion beyond; measured ones never fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hetserve.cost.curve import NOTHING, Curve, measured


def test_between_before_and_beyond() -> None:
    curve = Curve((2.0, 4.0, 16.0), (1.0, 3.0, 9.0))
    assert [curve.at(rows) for rows in (0, 1, 2, 3, 4, 10, 16, 32)] == pytest.approx([1, 1, 1, 2, 3, 6, 9, 18])
    assert curve.row_s == 9 / 16 and (curve * 3).at(3) == pytest.approx(6)
    assert NOTHING.at(0) == NOTHING.at(1000) == 0


@given(st.floats(1e-6, 1.0), st.floats(1e-9, 1e-2), st.floats(1.0, 1e5))
def test_a_floor_and_a_slope(floor_s, row_s, rows) -> None:
    assert Curve.floor(floor_s, row_s).at(rows) == pytest.approx(max(floor_s, row_s * rows))
    assert Curve.floor(0.0, row_s).at(rows) == pytest.approx(row_s * rows)


def test_measured_points_that_fall_are_levelled() -> None:
    assert measured([(1, 1.0), (2, 3.0), (4, 2.0), (8, 4.0)]) == Curve((1, 2, 4, 8), (1.0, 2.5, 2.5, 4.0))
    assert measured([(1, 5.0), (2, 4.0), (4, 3.0)]).seconds == (4.0, 4.0, 4.0)
    with pytest.raises(ValueError, match="a point"):
        measured([])


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
def test_measured_curves_never_fall_and_keep_the_mean(seconds) -> None:
    curve = measured(enumerate(seconds, 1))
    assert list(curve.seconds) == sorted(curve.seconds) and sum(curve.seconds) == pytest.approx(sum(seconds))
