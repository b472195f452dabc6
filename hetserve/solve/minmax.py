"""Splits work over unlike pools so that the slowest finishes as early as possible, in whole units; numbers in, numbers out.

A *row* is work that may be cut into equal units, each of which goes to one pool: one request's head groups of one rank. One request is
solved exactly here; `solve/together.py` takes several at once, `solve/relaxed.py` says how well that can be done at best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]

NO_SPACE = -1


@dataclass
class State:
    """Pools as they fill. `load_s` is what a pool takes now, 0 for one that holds nothing; `open_s` what its first unit costs beside itself."""

    load_s: Floats  # [pools]
    open_s: Floats  # [pools]; 0 once opened
    free: Ints  # [pools] pages

    def copy(self) -> State:
        return State(self.load_s.copy(), self.open_s.copy(), self.free.copy())

    def put(self, units: Ints, unit_s: Floats, pages: Ints) -> None:
        """Adds rows. units: [rows, pools]; unit_s: [rows, pools], inf where a row may not go; pages: [rows] of one unit."""
        used = units.any(axis=0)
        self.load_s += np.where(used, self.open_s, 0.0) + (units * np.where(units, unit_s, 0.0)).sum(axis=0)
        self.open_s[used] = 0.0
        self.free -= (units * pages[:, None]).sum(axis=0)


def split_one(units: int, homes: int, unit_s: Floats, pages: int, state: State) -> Ints | None:
    """The best split of one request: exact. Among equals as much as possible stays at home, the rest goes where it ends first.

    Args:
        units: of each of the request's rows.
        homes: its rows; row r may go to pool r (its home) and to all pools from `homes` on.
        unit_s: [pools] seconds one unit adds to a pool.
        pages: of one unit.

    Returns: int64 [homes, pools] units; None: there is no room.
    """
    room = np.minimum(state.free // pages, units * homes)
    room[:homes] = np.minimum(room[:homes], units)
    steps = np.arange(1, units * homes + 1)
    ends_s = (state.load_s + state.open_s)[:, None] + unit_s[:, None] * steps  # [pools, units]: a pool's time with so many of them
    ends_s[steps > room[:, None]] = np.inf
    at_home = _latest(ends_s, units, homes, state.load_s.max())
    if at_home is None:
        return None
    found = np.zeros((homes, len(unit_s)), np.int64)
    found[range(homes), range(homes)] = at_home
    away = units - at_home
    first = np.argsort(ends_s[homes:], axis=None, kind="stable")[: away.sum()] // len(steps)
    taken, rank = np.bincount(first, minlength=len(unit_s) - homes), 0
    for worker, left in enumerate(taken.tolist()):
        while left:
            share = min(left, int(away[rank]))
            found[rank, homes + worker] += share
            away[rank] -= share
            left -= share
            rank += not away[rank]
    return found


def _latest(ends_s: Floats, units: int, homes: int, now_s: float) -> Ints | None:
    """[homes] units each home keeps when everything ends as early as it can; None where it never fits."""
    times_s = np.sort(ends_s, axis=None)
    times_s = np.concatenate([[now_s], times_s[(times_s > now_s) & (times_s < np.inf)]])
    low, high = 0, len(times_s)
    kept = None
    while low < high:  # the first time that is enough
        middle = (low + high) // 2
        most = (ends_s <= times_s[middle]).sum(axis=1)
        if (units - np.minimum(most[:homes], units)).sum() <= most[homes:].sum():
            kept, high = np.minimum(most[:homes], units), middle
        else:
            low = middle + 1
    return kept


def one_by_one(units: int, homes: int, unit_s: Floats, pages: Ints, order: Ints, state: State) -> Ints:
    """Each request alone, in `order`, on top of those before it; `state` grows.

    Args:
        unit_s: [requests, pools].
        pages: [requests].

    Returns: int64 [requests, homes, pools] units; NO_SPACE throughout for a request without room.
    """
    found = np.full((len(order), homes, unit_s.shape[1]), NO_SPACE, np.int64)
    for request in order.tolist():
        split = split_one(units, homes, unit_s[request], int(pages[request]), state)
        if split is not None:
            found[request] = split
            state.put(split, unit_s[[request] * homes], pages[[request] * homes])
    return found


def ideal_s(units: float, weight: float, head_s: Floats, token_s: Floats, fixed_s: Floats) -> float:
    """The best time of everything placed anew, every request cut in the same proportions (Hetis 5.3.1's f*, there an LP; this closed form can be
    reached, and costs microseconds).

    Args:
        units: head groups of all requests.
        weight: the sum of head groups * tokens.
        head_s, token_s, fixed_s: [pools] as in policy/heads.py.
    """
    whole_s = np.maximum(head_s * units + token_s * weight, 1e-300)  # of everything on one pool
    order = np.argsort(fixed_s, kind="stable")
    opened_s = (1 + np.cumsum(fixed_s[order] / whole_s[order])) / np.cumsum(1 / whole_s[order])
    return float(opened_s.min())
