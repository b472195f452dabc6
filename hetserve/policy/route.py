"""Which group takes a request that has just arrived (or lost its group). Never knows how long its answer will be."""

from __future__ import annotations

from hetserve.policy.row import Floats, Ints


def least_loaded(tokens: Ints, capacity: Ints, speed: Floats) -> int:
    """The group whose tokens (known of its running and waiting requests) fill the smallest share of its KV capacity; the first of equals.

    Args:
        tokens: int64 [groups] tokens a group is responsible for; -1: the group is down, or takes no prompts.
        capacity: int64 [groups] tokens its pools hold.
        speed: float64 [groups] tokens per second; of no interest here.

    Returns: the group's index, -1 when all are down.
    """
    best, best_share = -1, float("inf")
    for group, (held, room) in enumerate(zip(tokens.tolist(), capacity.tolist(), strict=True)):
        if held >= 0 and held / room < best_share:
            best, best_share = group, held / room
    return best
