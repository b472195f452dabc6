"""How two workers exchange tensors: sizes are known on both sides from the step, messages of one tag arrive in the order they were sent.

A receive is posted before the other side can be expected to send. A pending operation is waited for at most once. Once a peer is gone, or did not
answer in time, its link is closed for good and every later use raises PeerLost at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

# What a message is about; with the stage and group it makes the tag.
HEADS, HIDDEN, TOKENS, LOSSES, KV = range(5)
KINDS = 8
MOST_STAGES = 64


class PeerLost(Exception):
    """The other end is gone or does not answer."""


def make_tag(kind: int, group: int = 0, stage: int = 0) -> int:
    """One number for (kind, group, stage)."""
    return (group * MOST_STAGES + stage) * KINDS + kind


class Pending(Protocol):
    """A send or receive under way. Its tensor is not to be touched before `wait` returns."""

    def wait(self, timeout_s: float) -> None:
        """Returns when done; raises PeerLost when the peer is gone or the time is over."""


class Link(Protocol):
    """One connection to one peer."""

    def post_recv(self, into: torch.Tensor, tag: int) -> Pending: ...

    def isend(self, data: torch.Tensor, tag: int) -> Pending: ...

    def close(self) -> None: ...


STEPS, MOVES = "steps", "moves"  # planes: a link for steps and one for KV moves, so that a long move never stands before a step
Connect: TypeAlias = Callable[[str, str], Link]  # (peer, plane) -> link; blocks until the peer connects too
