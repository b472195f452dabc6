"""Which running request is placed anew, because the pools are too far from the best balance.

Every function takes the same numbers:
    kv_heads: head groups of a request.
    counts: int32 [requests, pools] head groups of each running request on each pool of a stage.
    tokens: int64 [requests] their lengths; order: int64 [requests] larger arrived later.
    pages_free: int64 [pools].
    head_s, token_s, fixed_s: float64 [pools] as in policy/heads.py.
and returns the request's index; -1: none.
"""

from __future__ import annotations

import numpy as np

from hetserve.policy.row import Floats, Ints, Rebalance
from hetserve.solve.minmax import State, ideal_s, split_one


def none(kv_heads: int, counts: Ints, tokens: Ints, order: Ints, pages_free: Ints, head_s: Floats, token_s: Floats, fixed_s: Floats) -> int:
    """Nobody is."""
    return -1


def drift(theta: float) -> Rebalance:
    """Hetis 5.3.1: once the slowest pool takes more than (1 + theta) times the ideal, the request with the largest load there.

    None where placing that request anew would not make the slowest pool faster, or there would be moves for nothing.
    """

    def chosen(kv_heads: int, counts: Ints, tokens: Ints, order: Ints, pages_free: Ints, head_s: Floats, token_s: Floats, fixed_s: Floats) -> int:
        held, cached = counts.sum(axis=0), tokens @ counts
        now_s = held * head_s + cached * token_s + np.where(held > 0, fixed_s, 0.0)
        slow = int(now_s.argmax())
        if now_s[slow] <= (1 + theta) * ideal_s(float(held.sum()), float(cached.sum()), head_s, token_s, fixed_s):
            return -1
        loads_s = counts[:, slow] * (head_s[slow] + token_s[slow] * tokens)
        victim = int(loads_s.argmax())
        left = held - counts[victim]
        busy = left > 0
        load_s = left * head_s + (cached - counts[victim] * tokens[victim]) * token_s + np.where(busy, fixed_s, 0.0)
        open_pools = np.where(pages_free + counts[victim] > 0, kv_heads, 0)  # how much fits is looked at by whoever places it
        state = State(load_s, np.where(busy, 0.0, fixed_s), open_pools)
        unit_s = head_s + token_s * tokens[victim]
        split = split_one(kv_heads, 1, unit_s, 1, state)
        if split is None:
            return -1
        state.put(split, unit_s[None], np.ones(1, np.int64))
        return victim if state.load_s.max() < now_s[slow] * (1 - 1e-6) else -1

    return chosen
