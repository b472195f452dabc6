"""How many head groups of each request every pool of a stage holds."""

from __future__ import annotations

import numpy as np

from hetserve.policy.row import Floats, Int32s, Ints


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
    """All head groups on the primaries that compute them.

    Args:
        kv_heads: head groups of a request.
        ranks: tensor-parallel primaries: pools 0 to ranks - 1; the others are attention workers. A primary holds only head groups of its own rank.
        tokens: int64 [requests] their lengths now.
        rows: int64 [requests] pages that each head group of a request needs.
        held: int64 [pools] head groups of other requests there.
        cached: int64 [pools] their head groups times tokens.
        pages_free: int64 [pools].
        head_s, token_s, fixed_s: float64 [pools] seconds per head group, per head group and token, and once a pool holds anything.

    Returns: int32 [requests, ranks, pools] head groups; -1 throughout for a request without room.
    """
    counts = np.zeros((len(tokens), ranks, len(held)), np.int32)
    counts[:, range(ranks), range(ranks)] = kv_heads // ranks
    return counts
