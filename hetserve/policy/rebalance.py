"""Which running requests are placed anew, because the pools are too far from the best balance.

Every function takes the same numbers:
    kv_heads: head groups of a request; ranks: see policy/heads.py.
    counts: int32 [requests, pools] head groups of each request that may move, on each pool of a stage.
    tokens: int64 [requests] their lengths; rows: int64 [requests] pages that each head group of a request needs, one more than it has.
    pools: what lies in each pool without these requests, and what it costs. `pages_free` beside what they have; negative: too much lies there.
and returns the requests' indices: int64 [chosen].
"""

from __future__ import annotations

import numpy as np

from hetserve.policy.pools import StagePools
from hetserve.policy.row import Ints, Rebalance
from hetserve.solve.minmax import ideal_s, on_one, split_one

NOBODY = np.zeros(0, np.int64)
NOBODY.setflags(write=False)


def none(kv_heads: int, ranks: int, counts: Ints, tokens: Ints, rows: Ints, pools: StagePools) -> Ints:
    """Nobody is."""
    return NOBODY


def drift(theta: float, sharing: bool = True) -> Rebalance:
    """Hetis 5.3.1: once the slowest pool takes more than (1 + theta) times the ideal, the request with the largest load there. Where the ideal is one
    pool for everything, because several slow each other too much, all requests that have head groups elsewhere.

    Nobody where that would not make the slowest pool faster, or there would be moves for nothing.

    Args:
        sharing: whether pools slow each other, as `policy.heads` that does not look at it would undo what is found here.
    """

    def chosen(kv_heads: int, ranks: int, counts: Ints, tokens: Ints, rows: Ints, pools: StagePools) -> Ints:
        pools = pools if sharing else pools.alone()
        unit_s = pools.unit_s(tokens)
        all_of_it = pools._replace(held=pools.held + counts.sum(axis=0), cached=pools.cached + tokens @ counts)
        now = all_of_it.state()
        now_s = now.slowest_s()
        others = _with_room(pools, (rows - 1) @ counts).state()
        only, only_s = on_one(ranks, kv_heads * unit_s.sum(axis=0), kv_heads * int(rows.sum()), others)
        slowed = pools.head_s * pools.shared, pools.token_s * pools.shared, pools.fixed_s
        split_s = ideal_s(float(all_of_it.held.sum()), float(all_of_it.cached.sum()), ranks, *slowed)
        if now_s <= (1 + theta) * min(only_s, split_s):
            return NOBODY
        if only_s <= split_s:
            return np.flatnonzero(counts[:, only] < kv_heads)
        slow = int(now.load_s.argmax())
        victim = int((counts[:, slow] * unit_s[:, slow]).argmax())
        left = all_of_it._replace(held=all_of_it.held - counts[victim], cached=all_of_it.cached - counts[victim] * tokens[victim])
        after = _with_room(left, (rows[victim] - 1) * counts[victim]).state()
        split = split_one(kv_heads // ranks, ranks, unit_s[victim], int(rows[victim]), after)
        if split is None:
            return NOBODY
        after.put(split, unit_s[[victim] * ranks], rows[[victim] * ranks])
        return np.array([victim]) if after.slowest_s() < now_s * (1 - 1e-6) else NOBODY

    return chosen


def _with_room(pools: StagePools, pages: Ints) -> StagePools:
    """The pools with `pages` [pools] more free."""
    return pools._replace(pages_free=np.maximum(pools.pages_free + pages, 0))
