"""Deals requests over replicas at the client, as a user of several unlike servers would: each to the one expected to be done with it first.

It knows of each replica its speed, measured beforehand, and what it was sent and has not finished; of a request its prompt and its max_tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class Router:
    """The tokens outstanding at each replica.

    Args:
        speeds: tokens per second of each replica, prompt and answer together.
    """

    def __init__(self, speeds: Sequence[float]) -> None:
        assert speeds and all(speed > 0 for speed in speeds)
        self._speeds = tuple(speeds)
        self._outstanding = [0] * len(speeds)

    def take(self, tokens: int) -> int:
        """The replica for a request of so many tokens: the smallest (outstanding + tokens) / speed, the first of equals."""
        chosen = min(range(len(self._speeds)), key=lambda one: (self._outstanding[one] + tokens) / self._speeds[one])
        self._outstanding[chosen] += tokens
        return chosen

    def done(self, replica: int, tokens: int) -> None:
        """A request taken earlier has ended."""
        self._outstanding[replica] -= tokens
        assert self._outstanding[replica] >= 0
