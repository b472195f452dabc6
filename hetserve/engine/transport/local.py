"""Links between workers on threads of one process: queues. For tests, and machines where workers are not processes of their own."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict

import torch

from hetserve.engine.transport.link import PeerLost

LOOK_S = 0.05  # how often a wait looks whether its peer is still there


class LocalHub:
    """All mailboxes of one process's workers."""

    def __init__(self) -> None:
        self._boxes: defaultdict[tuple[str, str, str, int], queue.SimpleQueue[torch.Tensor]] = defaultdict(queue.SimpleQueue)
        self._lock = threading.Lock()
        self.gone: set[str] = set()

    def box(self, source: str, target: str, plane: str, tag: int) -> queue.SimpleQueue[torch.Tensor]:
        with self._lock:
            return self._boxes[source, target, plane, tag]

    def leave(self, device: str) -> None:
        """The device's worker is gone; its peers notice."""
        self.gone.add(device)


class LocalLinks:
    """Makes one worker's links."""

    def __init__(self, hub: LocalHub, device: str) -> None:
        self._hub = hub
        self._device = device

    def connect(self, peer: str, plane: str) -> LocalLink:
        return LocalLink(self._hub, self._device, peer, plane)


class LocalLink:
    """A `Link` over two mailboxes for each tag."""

    def __init__(self, hub: LocalHub, device: str, peer: str, plane: str) -> None:
        self._hub, self._device, self._peer, self._plane = hub, device, peer, plane
        self._closed = False

    def post_recv(self, into: torch.Tensor, tag: int) -> _Receive:
        self.require_open()
        return _Receive(self, self._hub.box(self._peer, self._device, self._plane, tag), into)

    def isend(self, data: torch.Tensor, tag: int) -> _Sent:
        self.require_open()
        if self._peer in self._hub.gone:
            raise self.lose()
        self._hub.box(self._device, self._peer, self._plane, tag).put(data.clone())
        return _Sent()

    def close(self) -> None:
        self._closed = True

    def require_open(self) -> None:
        if self._closed or self._device in self._hub.gone:
            raise PeerLost("the link is closed")

    def peer_is_gone(self) -> bool:
        return self._peer in self._hub.gone

    def lose(self) -> PeerLost:
        self._closed = True
        return PeerLost(f"{self._peer} is gone or does not answer")


class _Sent:
    """A send is done as soon as it is posted."""

    def wait(self, timeout_s: float) -> None:
        return


class _Receive:
    def __init__(self, link: LocalLink, box: queue.SimpleQueue[torch.Tensor], into: torch.Tensor) -> None:
        self._link, self._box, self._into = link, box, into

    def wait(self, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._link.require_open()
            try:
                self._into.copy_(self._box.get(timeout=LOOK_S))
                return
            except queue.Empty:
                if self._link.peer_is_gone() or time.monotonic() > deadline_s:
                    raise self._link.lose() from None
