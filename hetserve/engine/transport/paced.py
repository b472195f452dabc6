"""A link made slower than it is: messages are sent later, as the declared latency and bandwidth would have it. Results are `emulated`.

One thread a link sleeps until each message is due; messages keep their order and share the bandwidth.
"""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

import torch

from hetserve.engine.slack import sleep_s, without_slack
from hetserve.engine.transport.link import Link, PeerLost, Pending


class PacedLink:
    """A `Link` whose sends arrive `latency_s` and size / `bytes_per_s` later; receives are the other end's sends.

    Args:
        link: what carries the messages.
        latency_s: one way.
        bytes_per_s: of this direction.
    """

    def __init__(self, link: Link, latency_s: float, bytes_per_s: float) -> None:
        self._link = link
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0  # when the wire has carried everything so far
        self._due: queue.SimpleQueue[_Due | None] = queue.SimpleQueue()
        threading.Thread(target=self._deliver, name="paced link", daemon=True).start()

    def post_recv(self, into: torch.Tensor, tag: int) -> Pending:
        return self._link.post_recv(into, tag)

    def isend(self, data: torch.Tensor, tag: int) -> Pending:
        self._free_at_s = max(self._free_at_s, time.monotonic()) + data.nbytes / self._bytes_per_s
        due = _Due(self._free_at_s + self._latency_s, data, tag)
        self._due.put(due)
        return due

    def close(self) -> None:
        self._due.put(None)
        self._link.close()

    def _deliver(self) -> None:
        with without_slack():
            while (due := self._due.get()) is not None:
                sleep_s(due.at_s - time.monotonic())
                try:
                    due.sent.set_result(self._link.isend(due.data, due.tag))
                except PeerLost as error:
                    due.sent.set_exception(error)


class _Due:
    """A message that waits for its time; a `Pending`."""

    def __init__(self, at_s: float, data: torch.Tensor, tag: int) -> None:
        self.at_s = at_s
        self.data = data
        self.tag = tag
        self.sent: Future[Pending] = Future()

    def wait(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        try:
            sending = self.sent.result(timeout_s)
        except FutureTimeout:
            raise PeerLost("the message was not sent in time") from None
        sending.wait(max(0.0, until_s - time.monotonic()))
