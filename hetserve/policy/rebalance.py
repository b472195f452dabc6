"""Which running requests change their placement, and where to."""

from __future__ import annotations

from hetserve.policy.row import Ints


def none(heads: Ints, tokens: Ints) -> list[tuple[int, int]]:
    """Nobody moves.

    Args:
        heads: int64 [devices] head groups each device holds.
        tokens: int64 [devices] head groups times tokens each device holds.

    Returns: (slot, device) pairs to re-place.
    """
    return []
