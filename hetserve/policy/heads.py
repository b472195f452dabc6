"""How many head groups of each request every pool of a stage holds (Hetis 5.2, in consistent units: groups, tokens and pages).

Every function takes the same numbers:
    kv_heads: head groups of a request.
    ranks: tensor-parallel primaries: pools 0 to ranks - 1; the others are attention workers. A primary holds only head groups of its own rank.
    tokens: int64 [requests] their lengths now.
    rows: int64 [requests] pages that each head group of a request needs.
    held: int64 [pools] head groups of other requests there; cached: int64 [pools] their head groups times tokens.
    pages_free: int64 [pools].
    head_s, token_s, fixed_s: float64 [pools] seconds per head group, per head group and token, and once a pool holds anything.
and returns int32 [requests, ranks, pools] head groups; -1 throughout for a request without room.
"""

from __future__ import annotations

import numpy as np

from hetserve.policy.row import Floats, Int32s, Ints
from hetserve.solve.minmax import State, one_by_one
from hetserve.solve.relaxed import relaxed, rounded
from hetserve.solve.together import split_all


def on_group(
    kv_heads: int,
    ranks: int,
    tokens: Ints,
    rows: Ints,
    held: Ints,
    cached: Ints,
    pages_free: Ints,
    head_s: Floats,
    token_s: Floats,
    fixed_s: Floats,
) -> Int32s:
    """All head groups on the primaries that compute them."""
    counts = np.zeros((len(tokens), ranks, len(held)), np.int32)
    counts[:, range(ranks), range(ranks)] = kv_heads // ranks
    return counts


def even(
    kv_heads: int,
    ranks: int,
    tokens: Ints,
    rows: Ints,
    held: Ints,
    cached: Ints,
    pages_free: Ints,
    head_s: Floats,
    token_s: Floats,
    fixed_s: Floats,
) -> Int32s:
    """Each request's head groups in turn over the pools with room, as if all were alike."""
    free = np.array(pages_free, np.int64)
    counts = np.full((len(tokens), ranks, len(held)), -1, np.int32)
    for request, size in enumerate(rows.tolist()):
        dealt, left = np.zeros((ranks, len(held)), np.int32), free.copy()
        for head in range(kv_heads):
            rank = head % ranks
            pools = [rank, *range(ranks, len(held))]
            with_room = [pool for pool in pools if left[pool] >= size]
            if not with_room:
                break
            pool = min(with_room, key=lambda one: dealt[:, one].sum())
            dealt[rank, pool] += 1
            left[pool] -= size
        if dealt.sum() == kv_heads:
            counts[request], free = dealt, left
    return counts


def dealt(
    kv_heads: int,
    ranks: int,
    tokens: Ints,
    rows: Ints,
    held: Ints,
    cached: Ints,
    pages_free: Ints,
    head_s: Floats,
    token_s: Floats,
    fixed_s: Floats,
) -> Int32s:
    """Each request alone, in the order given: head group by head group to the pool that ends earliest with it, the best for that request."""
    state = _state(held, cached, pages_free, head_s, token_s, fixed_s)
    in_turn = np.arange(len(tokens))
    return one_by_one(kv_heads // ranks, ranks, _unit_s(tokens, head_s, token_s), _whole(rows), in_turn, state).astype(np.int32)


def exact(
    kv_heads: int,
    ranks: int,
    tokens: Ints,
    rows: Ints,
    held: Ints,
    cached: Ints,
    pages_free: Ints,
    head_s: Floats,
    token_s: Floats,
    fixed_s: Floats,
) -> Int32s:
    """All requests together; the slowest pool ends as early as possible: exactly for one request, never later than `dealt`
    and `paper` for several.

    Constants are charged only to pools that hold something; among equals head groups stay with their primaries.
    """
    state = _state(held, cached, pages_free, head_s, token_s, fixed_s)
    return split_all(kv_heads // ranks, ranks, _unit_s(tokens, head_s, token_s), _whole(rows), state).astype(np.int32)


def paper(
    kv_heads: int,
    ranks: int,
    tokens: Ints,
    rows: Ints,
    held: Ints,
    cached: Ints,
    pages_free: Ints,
    head_s: Floats,
    token_s: Floats,
    fixed_s: Floats,
) -> Int32s:
    """As published: a linear program over all requests, constants charged to every pool even while it is empty (Eq. 7), largest remainders up.

    Where all together do not fit, each request has its own program, in the order given.
    """
    unit_s, sizes = _unit_s(tokens, head_s, token_s), _whole(rows)
    state = State(held * head_s + cached * token_s + fixed_s, np.zeros(len(held)), np.array(pages_free, np.int64))
    together = relaxed(kv_heads // ranks, ranks, unit_s, sizes, state.load_s, state.free)
    if together is not None:
        return rounded(together[1], kv_heads // ranks, sizes, unit_s, state).astype(np.int32)
    counts = np.full((len(tokens), ranks, len(held)), -1, np.int32)
    for request in range(len(tokens)):
        one = slice(request, request + 1)
        alone = relaxed(kv_heads // ranks, ranks, unit_s[one], sizes[one], state.load_s, state.free)
        if alone is not None:
            counts[one] = rounded(alone[1], kv_heads // ranks, sizes[one], unit_s[one], state)
    return counts


def _state(held: Ints, cached: Ints, pages_free: Ints, head_s: Floats, token_s: Floats, fixed_s: Floats) -> State:
    busy = held > 0
    load_s = held * head_s + cached * token_s + np.where(busy, fixed_s, 0.0)
    return State(load_s, np.where(busy, 0.0, fixed_s), np.array(pages_free, np.int64))


def _unit_s(tokens: Ints, head_s: Floats, token_s: Floats) -> Floats:
    """[requests, pools] seconds that one head group of a request adds."""
    return head_s + token_s * np.asarray(tokens)[:, None]


def _whole(rows: Ints) -> Ints:
    return np.asarray(rows, np.int64)
