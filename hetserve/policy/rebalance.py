"""Which running request is placed anew, because the pools are too far from the best balance."""

from __future__ import annotations

from hetserve.policy.row import Floats, Ints


def none(kv_heads: int, counts: Ints, tokens: Ints, order: Ints, pages_free: Ints, head_s: Floats, token_s: Floats, fixed_s: Floats) -> int:
    """Nobody is.

    Args:
        kv_heads: head groups of a request.
        counts: int32 [requests, pools] head groups of each running request on each pool of a stage.
        tokens: int64 [requests] their lengths.
        order: int64 [requests] larger arrived later.
        pages_free: int64 [pools].
        head_s, token_s, fixed_s: float64 [pools] as in policy/heads.py.

    Returns: the request's index; -1: none.
    """
    return -1
