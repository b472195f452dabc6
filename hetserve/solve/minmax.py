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
    """Pools as they fill.

    Pools that share a path to memory slow each other: what a unit takes is said for the case that other pools hold something too. Where one pool
    holds everything, its units take `shared` times less.
    """

    work_s: Floats  # [pools] what the units there take
    fixed_s: Floats  # [pools] what a pool takes beside, once it holds anything
    holds: NDArray[np.bool_]  # [pools]
    free: Ints  # [pools] pages
    shared: Floats  # [pools] at least 1

    @property
    def load_s(self) -> Floats:
        """[pools] what a pool takes while others hold something too; 0 for one that holds nothing."""
        return np.where(self.holds, self.work_s + self.fixed_s, 0.0)

    @property
    def open_s(self) -> Floats:
        """[pools] what a pool's first unit costs beside itself."""
        return np.where(self.holds, 0.0, self.fixed_s)

    def slowest_s(self) -> float:
        """When the last pool is through."""
        if np.count_nonzero(self.holds) == 1:
            only = int(self.holds.argmax())
            return float(self.work_s[only] / self.shared[only] + self.fixed_s[only])
        return float(self.load_s.max())

    def copy(self) -> State:
        return State(self.work_s.copy(), self.fixed_s, self.holds.copy(), self.free.copy(), self.shared)

    def put(self, units: Ints, unit_s: Floats, pages: Ints) -> None:
        """Adds rows. units: [rows, pools]; unit_s: [rows, pools], inf where a row may not go; pages: [rows] of one unit."""
        self.work_s += (units * np.where(units, unit_s, 0.0)).sum(axis=0)
        self.holds |= units.any(axis=0)
        self.free -= pages @ units


def split_one(units: int, homes: int, unit_s: Floats, pages: int, state: State) -> Ints | None:
    """The best split of one request: exact. Among equals as much as possible stays at home, the rest goes where it ends first.

    Args:
        units: of each of the request's rows.
        homes: its rows; row r may go to pool r (its home) and to all pools from `homes` on.
        unit_s: [pools] seconds one unit adds to a pool while others hold something too.
        pages: of one unit.

    Returns: int64 [homes, pools] units; None: there is no room.
    """
    everything = units * homes
    room = np.minimum(state.free // pages, everything)
    room[:homes] = np.minimum(room[:homes], units)
    if room.sum() < everything:
        return None
    steps = np.arange(1, everything + 1)
    ends_s = (state.work_s + state.fixed_s)[:, None] + unit_s[:, None] * steps  # [pools, units]: a pool's time with so many of them
    ends_s[steps > room[:, None]] = np.inf
    split_s = max(float(np.partition(ends_s, everything - 1, axis=None)[everything - 1]), float(state.load_s.max()))
    pool, whole_s = on_one(homes, everything * unit_s, everything * pages, state)
    found = np.zeros((homes, len(unit_s)), np.int64)
    if whole_s < split_s * (1 - 1e-9) or (whole_s <= split_s and pool < homes):
        found[:, pool] = units
        return found
    found[range(homes), range(homes)] = at_home = (ends_s[:homes] <= split_s).sum(axis=1)
    away = units - at_home
    first = np.argsort(ends_s[homes:], axis=None, kind="stable")[: away.sum()] // everything
    taken, rank = np.bincount(first, minlength=len(unit_s) - homes), 0
    for worker, left in enumerate(taken.tolist()):
        while left:
            share = min(left, int(away[rank]))
            found[rank, homes + worker] += share
            away[rank] -= share
            left -= share
            rank += not away[rank]
    return found


def on_one(homes: int, work_s: Floats, pages: int, state: State) -> tuple[int, float]:
    """The pool that is through first if it takes everything, and nobody else holds anything; and when. (0, inf): no pool may.

    Args:
        homes: as of `split_one`; where there are several, only a pool beyond them may take everything.
        work_s: [pools] seconds that all units add to a pool while others hold something too.
        pages: of all units.
    """
    busy = np.flatnonzero(state.holds)
    if len(busy) > 1:
        return 0, np.inf
    may = state.free >= pages
    if homes > 1:
        may[:homes] = False
    if len(busy):
        may &= state.holds
    ends_s = np.where(may, (state.work_s + work_s) / state.shared + state.fixed_s, np.inf)
    pool = int(ends_s.argmin())
    return pool if may[pool] else 0, float(ends_s[pool])


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


def ideal_s(units: float, weight: float, homes: int, head_s: Floats, token_s: Floats, fixed_s: Floats) -> float:
    """The best time of everything placed anew, every request cut in the same proportions (Hetis 5.3.1's f*, there an LP; this can be reached, and
    costs microseconds). A pool holds what ends by that time; one that is only a home at most its own share.

    Args:
        units: head groups of all requests.
        weight: the sum of head groups * tokens.
        homes: the first pools, each of which may hold one in `homes` parts of everything.
        head_s, token_s, fixed_s: [pools] as in policy/row.py.
    """
    whole_s = np.maximum(head_s * units + token_s * weight, 1e-300)  # of everything on one pool
    most = np.where(np.arange(len(whole_s)) < homes, 1 / homes, 1.0)
    edges_s = np.sort(np.concatenate([fixed_s, fixed_s + most * whole_s]))  # where a pool begins to take, and has all it may
    parts = np.clip((edges_s[:, None] - fixed_s) / whole_s, 0.0, most).sum(axis=1)
    last = max(1, int(np.searchsorted(parts, 1 - 1e-9)))
    (begun, ended), (first_s, last_s) = parts[last - 1 : last + 1], edges_s[last - 1 : last + 1]
    return float(first_s + (last_s - first_s) * min(1.0, (1 - begun) / (ended - begun)))
