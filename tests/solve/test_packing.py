"""What shared rooms hold at most: by hand, and against prices, which prove that there is no more."""

from __future__ import annotations

import numpy as np
import pytest

from hetserve.solve.packing import most_packed


def test_two_things_share_a_room() -> None:
    found = most_packed(np.array([[1.0, 0.5]]), np.array([2.0, 1.0]))
    assert found.amounts.tolist() == pytest.approx([0.5, 1.0])  # the second takes less room, as much of it as there may be
    assert found.room_prices.tolist() == pytest.approx([1.0]) and found.own_prices.tolist() == pytest.approx([0.0, 0.5])


def test_nothing_in_the_way_but_own_limits() -> None:
    found = most_packed(np.zeros((1, 2)), np.array([2.0, 3.0]))
    assert found.amounts.tolist() == pytest.approx([2.0, 3.0])
    assert found.own_prices.tolist() == pytest.approx([2.0, 3.0]) and found.room_prices.tolist() == [0.0]


def test_prices_prove_that_there_is_no_more() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        uses = draw.uniform(0, 2, (6, 9)) * (draw.random((6, 9)) < 0.5)
        most = draw.uniform(0.1, 2, 9)
        found = most_packed(uses, most)
        assert (uses @ found.amounts <= 1 + 1e-7).all() and (found.amounts <= most + 1e-7).all() and (found.amounts >= 0).all()
        assert (found.room_prices >= -1e-9).all() and (found.own_prices >= -1e-9).all()
        assert (found.room_prices @ uses + found.own_prices / most >= 1 - 1e-7).all()  # so no amounts have a larger sum than all prices
        assert found.room_prices.sum() + found.own_prices.sum() == pytest.approx(found.amounts.sum())
