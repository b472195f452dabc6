"""Several requests split at once, so that the slowest pool finishes as early as possible: good starts, then improvements. No general MILP.

The starts are requests one by one as they come, and the linear program's answer in whole units; the result is never worse. Where pools slow each
other, all is reckoned slowed, and then compared with everything on one pool, undisturbed: there is no third case.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hetserve.solve.minmax import NO_SPACE, State, on_one, one_by_one
from hetserve.solve.relaxed import relaxed, rounded

Ints = NDArray[np.integer]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ROUNDS = 64  # improvements of the slowest pool tried at most


def split_all(units: int, homes: int, unit_s: Floats, pages: Ints, state: State) -> Ints:
    """The best split of all requests that is found; exact for a single one. Arguments and result as of `one_by_one`; `state` stays."""
    in_turn = np.arange(len(pages))
    if len(pages) == 1:
        return one_by_one(units, homes, unit_s, pages, in_turn, state.copy())
    best: Ints = np.zeros(0, np.int64)
    best_key = (len(pages) + 1, np.inf)
    for found, slowest_s in _candidates(units, homes, unit_s, pages, state):
        key = int((found[:, 0, 0] == NO_SPACE).sum()), slowest_s
        if key < best_key:
            best, best_key = found, key
    return best


def _candidates(units: int, homes: int, unit_s: Floats, pages: Ints, state: State) -> Iterator[tuple[Ints, float]]:
    """Splits and when their slowest pool is through: every start improved, and what lies on one pool, undisturbed, as it is."""
    for found, after in _starts(units, homes, unit_s, pages, state):
        if np.count_nonzero(after.holds) == 1:
            yield found.copy(), after.slowest_s()
        _improve(found, homes, unit_s, pages, after, state.holds)
        yield found, after.slowest_s()
    pool, whole_s = on_one(homes, units * homes * unit_s.sum(axis=0), units * homes * int(pages.sum()), state)
    if whole_s < np.inf:
        found = np.zeros((len(pages), homes, len(state.free)), np.int64)
        found[:, :, pool] = units
        yield found, whole_s * (1 + 1e-9)  # among equals a split, which has more at home


def _starts(units: int, homes: int, unit_s: Floats, pages: Ints, state: State) -> Iterator[tuple[Ints, State]]:
    """Splits to begin with, and the pools as they fill them."""
    after = state.copy()
    yield one_by_one(units, homes, unit_s, pages, np.arange(len(pages)), after), after
    after = state.copy()
    answer = relaxed(units, homes, unit_s, pages, state.work_s + state.fixed_s, state.free)
    if answer is not None:
        yield rounded(answer[1], units, pages, unit_s, after), after
    else:  # not everybody has room: longest first
        yield one_by_one(units, homes, unit_s, pages, np.argsort(-unit_s[:, 0], kind="stable"), after), after


def _improve(found: Ints, homes: int, unit_s: Floats, pages: Ints, state: State, held: Bools) -> None:
    """Takes units off the slowest pool while that makes it faster and nobody slower than it was, by moving or exchanging them; then brings home what
    may come home. Changes `found` and `state`. held: [pools] that held something before all of them."""
    placed = np.flatnonzero(found[:, 0, 0] != NO_SPACE)
    requests = np.repeat(placed, homes)
    if not len(requests):
        return
    pools = np.arange(unit_s.shape[1])
    home = np.tile(np.arange(homes), len(placed))
    allowed = (pools >= homes) | (pools == home[:, None])
    cost_s, size = np.where(allowed, unit_s[requests], np.inf), pages[requests]
    units = found[placed].reshape(len(requests), -1)
    for _ in range(ROUNDS):
        if not (_move(units, cost_s, size, state) or _exchange(units, cost_s, size, state)):
            break
    _bring_home(units, home, cost_s, size, state, held)
    found[placed] = units.reshape(len(placed), homes, -1)


def _move(units: Ints, cost_s: Floats, size: Ints, state: State) -> bool:
    """Moves units of one row from the slowest pool to another; whether one could."""
    load_s = state.load_s
    slow = int(load_s.argmax())
    top_s = load_s[slow]
    gap_s = top_s - load_s - state.open_s
    fits = np.minimum(units[:, [slow]], state.free // size[:, None])
    with np.errstate(invalid="ignore"):
        count = np.minimum(fits, np.maximum(np.floor(gap_s / (cost_s[:, [slow]] + cost_s)), 1))
        after_s = np.maximum(top_s - count * cost_s[:, [slow]], top_s - gap_s + count * cost_s)
    after_s[(count < 1) | ~np.isfinite(cost_s)] = np.inf
    after_s[:, slow] = np.inf
    row, pool = divmod(int(after_s.argmin()), len(load_s))
    if not after_s[row, pool] < top_s * (1 - 1e-9):
        return False
    _shift(units, row, slow, pool, int(count[row, pool]), cost_s, size, state)
    return True


def _exchange(units: Ints, cost_s: Floats, size: Ints, state: State) -> bool:
    """Exchanges units of a row on the slowest pool for as many of another row's elsewhere; whether one could."""
    load_s = state.load_s
    slow = int(load_s.argmax())
    top_s = load_s[slow]
    here = np.flatnonzero(units[:, slow])
    others = np.flatnonzero(np.isfinite(cost_s[:, slow]))
    most = np.minimum(units[here, slow][:, None, None], units[others])  # [here, others, pools]
    with np.errstate(invalid="ignore", divide="ignore"):
        less_s = cost_s[here, slow][:, None, None] - cost_s[others, slow][None, :, None]  # the slow pool gains, per unit
        more_s = cost_s[here][:, None] - cost_s[others][None]  # another pool loses
        grows = (size[here][:, None] - size[others])[:, :, None]
        enough = np.floor(np.where(more_s > 0, (top_s - load_s) / (less_s + more_s), np.inf))
        fits = np.where(grows > 0, state.free // np.maximum(grows, 1), np.where(grows < 0, state.free[slow] // np.maximum(-grows, 1), np.inf))
        count = np.minimum(np.minimum(most, np.maximum(enough, 1)), fits)
        after_s = np.maximum(top_s - count * less_s, load_s + count * more_s)
    after_s[(count < 1) | ~(less_s > 0) | ~np.isfinite(more_s)] = np.inf
    after_s[:, :, slow] = np.inf
    if not after_s.size or not after_s.min() < top_s * (1 - 1e-9):
        return False
    one, two, pool = np.unravel_index(int(after_s.argmin()), after_s.shape)
    moved = int(count[one, two, pool])
    _shift(units, int(here[one]), slow, int(pool), moved, cost_s, size, state)
    _shift(units, int(others[two]), int(pool), slow, moved, cost_s, size, state)
    return True


def _bring_home(units: Ints, home: Ints, cost_s: Floats, size: Ints, state: State, held: Bools) -> None:
    """Moves units from elsewhere to their home as far as the slowest pool stays the slowest."""
    top_s = float(state.load_s.max())
    for row in range(len(units)):
        at = int(home[row])
        for pool in np.flatnonzero(units[row]).tolist():
            if pool != at:
                fits = (top_s - state.work_s[at] - state.fixed_s[at]) / max(cost_s[row, at], 1e-300)
                count = int(min(units[row, pool], fits, state.free[at] // size[row]))
                if count > 0:
                    _shift(units, row, pool, at, count, cost_s, size, state)
    state.holds = held | units.any(axis=0)


def _shift(units: Ints, row: int, source: int, target: int, count: int, cost_s: Floats, size: Ints, state: State) -> None:
    units[row, source] -= count
    units[row, target] += count
    state.work_s[source] -= count * cost_s[row, source]
    state.work_s[target] += count * cost_s[row, target]
    state.holds[target] = True
    state.free[source] += count * size[row]
    state.free[target] -= count * size[row]
