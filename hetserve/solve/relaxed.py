"""The linear program behind `solve/minmax.py`: units may be cut. Its time is a bound no whole split beats; Hetis rounds its answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hetserve.solve.minmax import NO_SPACE, State

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]

AWAY = 1e-6  # what a unit away from home costs beside its time, relative: among equals work stays at home


def relaxed(units: int, homes: int, unit_s: Floats, pages: Ints, load_s: Floats, free: Ints) -> tuple[float, Floats] | None:
    """The slowest pool's time in the best split into parts of any size (Hetis, Eq. 7), and the parts; None: they do not fit even so.

    Args:
        units: of each row; every request has `homes` rows, and row r of it may go to pool r and to all pools from `homes` on.
        unit_s: [requests, pools] seconds of a unit; pages: [requests] of one.
        load_s: [pools] seconds before anything is added; free: [pools] pages.

    Returns: seconds, and float64 [requests, homes, pools] units.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # here: only these policies need scipy, and they import it once

    requests, pools = unit_s.shape
    job, rank, pool = np.indices((requests, homes, pools)).reshape(3, -1)
    own = (pool >= homes) | (pool == rank)
    job, rank, pool = job[own], rank[own], pool[own]
    count, columns = len(job), np.arange(len(job))
    scale = max(float(unit_s.mean()) * units, 1e-300)  # of order 1 for the solver
    time, room, whole = slice(0, pools), slice(pools, 2 * pools), slice(2 * pools, None)
    sums = np.zeros((2 * pools + requests * homes, count + 1))  # the last column is the time looked for
    sums[time][pool, columns], sums[time, count] = unit_s[job, pool] / scale, -1.0
    sums[room][pool, columns] = pages[job]
    sums[whole][job * homes + rank, columns] = 1.0
    most = np.concatenate([-load_s / scale, free, np.full(requests * homes, units)])
    least = np.full(len(most), -np.inf)
    least[whole] = units
    prices = np.append(np.where(pool >= homes, AWAY / (requests * homes * units), 0.0), 1.0)
    bounds = Bounds(np.append(np.zeros(count), load_s.max() / scale), np.append(np.full(count, units), np.inf))
    answer = milp(prices, bounds=bounds, constraints=LinearConstraint(sums, least, most))  # nothing in it must be whole: a linear program
    if answer.status != 0:
        return None
    parts = np.zeros((requests, homes, pools))
    parts[job, rank, pool] = answer.x[:-1]
    return float(answer.x[-1] * scale), parts


def rounded(parts: Floats, units: int, pages: Ints, unit_s: Floats, state: State) -> Ints:
    """Whole units: every part rounded down, then the largest remainders up, where there is room; `state` grows.

    Returns: int64 [requests, homes, pools]; NO_SPACE throughout for a request whose rounding finds none.
    """
    requests, homes, _ = parts.shape
    found = np.full(parts.shape, NO_SPACE, np.int64)
    for request in range(requests):
        split = np.floor(parts[request] + 1e-9).astype(np.int64)
        size, free = int(pages[request]), state.free - split.sum(axis=0) * int(pages[request])
        for row in range(homes):
            wanted = np.argsort(split[row] - parts[request, row], kind="stable")
            left = units - int(split[row].sum())
            for pool in [*wanted, *wanted] if left else ():  # twice: a remainder without room leaves its unit to the next
                if left and free[pool] >= size and (pool == row or pool >= homes):
                    split[row, pool] += 1
                    free[pool] -= size
                    left -= 1
            if left:
                break
        if (split.sum(axis=1) == units).all() and (free >= 0).all():
            found[request] = split
            state.put(split, unit_s[[request] * homes], pages[[request] * homes])
    return found
