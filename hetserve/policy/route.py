"""Which group takes a request that has just arrived (or lost its group). Never knows how long its answer will be.

Every function takes the same numbers:
    tokens: int64 [groups] tokens a group is responsible for; -1: the group is down, or takes no prompts.
    capacity: int64 [groups] tokens its pools hold.
    speed: float64 [groups] tokens per second.
and returns the group's index, -1 when all are down.
"""

from __future__ import annotations

import numpy as np

from hetserve.policy.row import Floats, Ints


def least_loaded(tokens: Ints, capacity: Ints, speed: Floats) -> int:
    """The group whose tokens (known of its running and waiting requests) fill the smallest share of its KV capacity; the first of equals."""
    up = np.flatnonzero(tokens >= 0)
    return min(up.tolist(), key=lambda group: tokens[group] / capacity[group], default=-1)


def fastest(tokens: Ints, capacity: Ints, speed: Floats) -> int:
    """The group that is through with its tokens earliest; among equals (all idle, say) the fastest, then the first."""
    up = np.flatnonzero(tokens >= 0)
    return min(up.tolist(), key=lambda group: (tokens[group] / speed[group], -speed[group]), default=-1)
