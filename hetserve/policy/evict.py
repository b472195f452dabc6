"""Who gives up its pages when there are none left."""

from __future__ import annotations

from hetserve.policy.row import Ints


def latest(order: Ints) -> int:
    """The sequence that arrived last: the earliest always gets on, so everybody does in the end.

    Args:
        order: int64 [candidates], larger is later, all different.

    Returns: the index of the one to preempt.
    """
    return int(order.argmax())
