"""How many head groups of each request every pool of a stage holds (Hetis 5.2, in consistent units: groups, tokens and pages).

Every function takes the same numbers:
    kv_heads: head groups of a request.
    ranks: tensor-parallel primaries: pools 0 to ranks - 1; the others are attention workers. Each rank computes kv_heads / ranks head groups. A
        primary holds only those of its own rank, a worker any: of the two ways that Hetis leaves open, the one without traffic between primaries.
    tokens: int64 [requests] their lengths now.
    rows: int64 [requests] pages that each head group of a request needs.
    pools: what lies in each pool without these requests, and what it costs.
and returns int32 [requests, ranks, pools] head groups; -1 throughout for a request without room.
"""

from __future__ import annotations

import numpy as np

from hetserve.policy.pools import StagePools
from hetserve.policy.row import Int32s, Ints
from hetserve.solve.minmax import one_by_one
from hetserve.solve.relaxed import relaxed, rounded
from hetserve.solve.together import split_all


def on_group(kv_heads: int, ranks: int, tokens: Ints, rows: Ints, pools: StagePools) -> Int32s:
    """All head groups on the primaries that compute them."""
    counts = np.zeros((len(tokens), ranks, len(pools.held)), np.int32)
    counts[:, range(ranks), range(ranks)] = kv_heads // ranks
    return counts


def even(kv_heads: int, ranks: int, tokens: Ints, rows: Ints, pools: StagePools) -> Int32s:
    """Each request's head groups in turn over the pools with room, as if all were alike."""
    free = np.array(pools.pages_free, np.int64)
    counts = np.full((len(tokens), ranks, len(free)), -1, np.int32)
    for request, size in enumerate(rows.tolist()):
        dealt, left = np.zeros((ranks, len(free)), np.int32), free.copy()
        for head in range(kv_heads):
            rank = head % ranks
            with_room = [pool for pool in (rank, *range(ranks, len(free))) if left[pool] >= size]
            if not with_room:
                break
            pool = min(with_room, key=lambda one: dealt[:, one].sum())
            dealt[rank, pool] += 1
            left[pool] -= size
        if dealt.sum() == kv_heads:
            counts[request], free = dealt, left
    return counts


def dealt(kv_heads: int, ranks: int, tokens: Ints, rows: Ints, pools: StagePools) -> Int32s:
    """Each request alone, in the order given: head group by head group to the pool that ends earliest with it, the best for that request."""
    in_turn = np.arange(len(tokens))
    return one_by_one(kv_heads // ranks, ranks, pools.unit_s(tokens), np.asarray(rows), in_turn, pools.state()).astype(np.int32)


def exact(kv_heads: int, ranks: int, tokens: Ints, rows: Ints, pools: StagePools) -> Int32s:
    """All requests together; the slowest pool ends as early as possible: exactly for one request, never later than `dealt` for several, nor than
    `paper` where pools do not slow each other.

    Constants are charged only to pools that hold something; among equals head groups stay with their primaries.
    """
    return split_all(kv_heads // ranks, ranks, pools.unit_s(tokens), np.asarray(rows), pools.state()).astype(np.int32)


def paper(kv_heads: int, ranks: int, tokens: Ints, rows: Ints, pools: StagePools) -> Int32s:
    """As published: a linear program over all requests, constants charged to every pool even while it is empty (Eq. 7), largest remainders up.
    Its pools never slow each other: `shared` is not looked at.
    Where all together do not fit, each request has its own program, in the order given.
    """
    alone = pools.alone()
    unit_s, sizes, state = alone.unit_s(tokens), np.asarray(rows), alone.state()
    state.holds[:] = True
    together = relaxed(kv_heads // ranks, ranks, unit_s, sizes, state.load_s, state.free)
    if together is not None:
        return rounded(together[1], kv_heads // ranks, sizes, unit_s, state).astype(np.int32)
    counts = np.full((len(tokens), ranks, len(pools.held)), -1, np.int32)
    for request in range(len(tokens)):
        one = slice(request, request + 1)
        parts = relaxed(kv_heads // ranks, ranks, unit_s[one], sizes[one], state.load_s, state.free)
        if parts is not None:
            counts[one] = rounded(parts[1], kv_heads // ranks, sizes[one], unit_s[one], state)
    return counts
