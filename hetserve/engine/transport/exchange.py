"""One step's messages with one peer, planned before the first: one each way for every layer of a stage. Here posted from Python, over any link.

`hetserve._net` has the same `Exchange` for gloo's own links; `posting.py` picks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

from hetserve.engine.transport.link import Link, PeerLost, Pending


class Exchange(Protocol):
    """The messages of one tag with one peer. Once the peer is lost it is lost for good, and every use raises PeerLost."""

    @property
    def lost(self) -> bool: ...

    def begin(self, outgoing: torch.Tensor, first: torch.Tensor, second: torch.Tensor, count: int, timeout_s: float) -> None:
        """Plans a step and expects its first message.

        Args:
            outgoing: what every `send` sends; not to be touched between that and the next `receive` or `finish`.
            first, second: where messages arrive, in turn.
            count: how many will.
            timeout_s: how long one wait may take.
        """

    def send(self) -> None:
        """Posts the next message to the peer."""

    def receive(self) -> int:
        """Waits for the peer's next message, expecting the one after it before, and for what was sent. Returns 0 or 1: where the message is."""

    def finish(self) -> None:
        """Waits until what was sent last has left."""


class LinkExchange:
    """An `Exchange` over a link, which it closes when the peer is lost. What may then still be under way stays referred to."""

    def __init__(self, link: Link, tag: int) -> None:
        self.lost = False
        self._link = link
        self._tag = tag
        self._coming: list[Pending] = []
        self._sending: Pending | None = None

    def begin(self, outgoing: torch.Tensor, first: torch.Tensor, second: torch.Tensor, count: int, timeout_s: float) -> None:
        with self._open_link() as link:
            self._outgoing, self._incoming = outgoing, (first, second)
            self._left, self._next = count, 0
            self._timeout_s = timeout_s
            self._coming = [link.post_recv(first, self._tag)]

    def send(self) -> None:
        with self._open_link() as link:
            self._sending = link.isend(self._outgoing, self._tag)

    def receive(self) -> int:
        with self._open_link() as link:
            here, self._next = self._next, 1 - self._next
            self._left -= 1
            if self._left:
                self._coming.append(link.post_recv(self._incoming[self._next], self._tag))
            self._coming[0].wait(self._timeout_s)
            del self._coming[0]
            self.finish()
        return here

    def finish(self) -> None:
        if self._sending is not None:
            with self._open_link():
                self._sending.wait(self._timeout_s)
            self._sending = None

    @contextmanager
    def _open_link(self) -> Iterator[Link]:
        if self.lost:
            raise PeerLost("the link is closed")
        try:
            yield self._link
        except PeerLost:
            self.lost = True
            self._link.close()
            raise
