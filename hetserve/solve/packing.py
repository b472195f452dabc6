"""As much as can be done at once of several things that use up shared rooms: a small linear program, solved by HiGHS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Packed:
    """Attributes:
    amounts: [things] how much is done of each.
    room_prices: [rooms] by how much the sum would grow if that room were twice as large, as long as nothing else gets in the way; 0: not full.
    own_prices: [things] the same of each thing's own limit.
    """

    amounts: Floats
    room_prices: Floats
    own_prices: Floats


def most_packed(uses: Floats, most: Floats) -> Packed:
    """The largest sum of amounts. Exact, and the same every time.

    Args:
        uses: [rooms, things] the share of a room that one unit of a thing takes, at least 0; numbers around 1 are best.
        most: [things] of each at most, finite.
    """
    from scipy.optimize import linprog  # here: planners are imported where nothing is planned

    found = linprog(-np.ones(len(most)), uses, np.ones(len(uses)), bounds=np.column_stack([np.zeros(len(most)), most]))
    assert found.status == 0, found.message  # nothing at all is always possible, and no amount is endless
    return Packed(np.maximum(found.x, 0.0), -found.ineqlin.marginals, -found.upper.marginals * most)
