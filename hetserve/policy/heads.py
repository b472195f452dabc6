"""Which device of a group holds each head group of a new request."""

from __future__ import annotations

import numpy as np

from hetserve.policy.row import Int32s, Ints


def on_group(kv_heads: int, pages_free: Ints) -> Int32s:
    """All head groups on the group's first device, its primary.

    Args:
        kv_heads: head groups to place.
        pages_free: int64 [devices] free pages of each device's pool.

    Returns: int32 [kv_heads] device index of each head group.
    """
    return np.zeros(kv_heads, np.int32)
