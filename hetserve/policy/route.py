"""Which group takes a request that has just arrived (or lost its group). Never knows how long its answer will be.

Every function takes the same numbers:
    added: tokens of the request, as far as they are known: its prompt.
    tokens: int64 [groups] tokens a group is responsible for already; -1: the group is down, or takes no prompts.
    capacity: int64 [groups] tokens its pools hold.
    speed: float64 [groups] tokens per second.
and returns the group's index, -1 when all are down.
"""

from __future__ import annotations

import numpy as np

from hetserve.policy.row import Floats, Ints


def least_loaded(added: int, tokens: Ints, capacity: Ints, speed: Floats) -> int:
    """The group whose tokens (known of its running and waiting requests), the new ones with them, fill the smallest share of its KV capacity; the
    first of equals."""
    up = np.flatnonzero(tokens >= 0)
    return min(up.tolist(), key=lambda group: (tokens[group] + added) / capacity[group], default=-1)


def fastest(added: int, tokens: Ints, capacity: Ints, speed: Floats) -> int:
    """The group that would be through with all its tokens, the new ones with them, earliest; among equals the fastest, then the first."""
    up = np.flatnonzero(tokens >= 0)
    return min(up.tolist(), key=lambda group: ((tokens[group] + added) / speed[group], -speed[group]), default=-1)
