"""A link for a worker on a device with memory of its own, over one that takes tensors of the host: copies through pinned memory at this end.

The other end sees the same messages and need not know. Only tensors that lie on the device are copied; what is on the host anyway passes through.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from hetserve.engine.accelerator import Accelerator, Mark
from hetserve.engine.transport.exchange import LinkExchange
from hetserve.engine.transport.link import Link, Pending

LEAST_BYTES = 4096  # of a buffer; sizes are powers of two
KEPT_BYTES = 64 << 20  # of buffers that nobody uses at the moment, for one link


class StagedLink:
    """A `Link` of tensors on a device. One thread uses it.

    On an emulated GPU, whose memory is the host's, everything is copied.

    Args:
        link: carries what is on the host.
        at: this end's device.
    """

    def __init__(self, link: Link, at: Accelerator) -> None:
        self._link = link
        self._at = at
        self._buffers = Buffers(at)

    def post_recv(self, into: torch.Tensor, tag: int) -> Pending:
        """As every link's; `wait` puts the copy to the device on the current stream and does not wait for it."""
        if into.device != self._at.device:
            return self._link.post_recv(into, tag)
        buffer = self._buffers.take(into.nbytes)
        staged = view_as(buffer, into)
        return _Arrival(self._at, self._buffers, buffer, staged, into, self._link.post_recv(staged, tag))

    def isend(self, data: torch.Tensor, tag: int) -> Pending:
        """As every link's; returns when the current stream has come as far as the copy to the host, as nobody would send it on later."""
        if data.device != self._at.device:
            return self._link.isend(data, tag)
        departure = self.hand_in(data, tag)
        departure.leave()
        return departure

    def hand_in(self, data: torch.Tensor, tag: int) -> Departure:
        """`isend` of what lies on the device, for somebody who puts more on the stream before calling `leave`."""
        buffer = self._buffers.take(data.nbytes)
        staged = view_as(buffer, data)
        staged.copy_(data, non_blocking=True)
        return Departure(self._at, self._buffers, buffer, self._at.mark(soon=True), lambda: self._link.isend(staged, tag))

    def close(self) -> None:
        self._link.close()


class Buffers:
    """Pinned host memory, used again and again: to get some takes far longer than to send what is in it."""

    def __init__(self, at: Accelerator) -> None:
        self._at = at
        self._free: dict[int, deque[tuple[torch.Tensor, Mark]]] = {}  # by size, longest unused first
        self.free_bytes = 0

    def take(self, size_bytes: int) -> torch.Tensor:
        """uint8 [at least size_bytes], which nothing reads or writes any more."""
        size = max(LEAST_BYTES, 1 << (size_bytes - 1).bit_length())
        free = self._free.get(size)
        if not free:
            return self._at.host(size, dtype=torch.uint8)
        buffer, mark = free.popleft()
        self.free_bytes -= size
        mark.wait()
        return buffer

    def give(self, buffer: torch.Tensor, mark: Mark) -> None:
        """Takes a buffer back, not to be used before the device has passed `mark`."""
        if self.free_bytes + buffer.nbytes <= KEPT_BYTES:
            self._free.setdefault(buffer.nbytes, deque()).append((buffer, mark))
            self.free_bytes += buffer.nbytes


def view_as(buffer: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The beginning of a uint8 buffer as a contiguous tensor of that shape and type."""
    return buffer[: like.nbytes].view(like.dtype).view(like.shape)


class Departure:
    """A send under way. A buffer that could not be sent is not used again: the link may still be reading it.

    Args:
        copied: passed when the device has filled the buffer.
        send: gives it to the link between the hosts.
    """

    def __init__(self, at: Accelerator, buffers: Buffers, buffer: torch.Tensor, copied: Mark, send: Callable[[], Pending]) -> None:
        self._at, self._buffers, self._buffer, self._copied, self._send = at, buffers, buffer, copied, send
        self._sending: Pending | None = None

    def leave(self) -> None:
        """Waits for the copy to the host and sends, unless that has been done."""
        if self._sending is None:
            self._copied.wait()
            self._sending = self._send()

    def wait(self, timeout_s: float) -> None:
        self.leave()
        assert self._sending is not None
        self._sending.wait(timeout_s)
        self._buffers.give(self._buffer, self._copied)


class StagedExchange(LinkExchange):
    """An `Exchange` over a staged link whose `send` waits for nothing: it puts the copy on the stream, and what is put there next does not wait until
    the message is under way. `leave` sends it, or else the next wait of this exchange does."""

    def __init__(self, link: StagedLink, tag: int) -> None:
        super().__init__(link, tag)
        self._staged = link
        self._leaving: Departure | None = None

    def send(self) -> None:
        with self._open_link():
            self._sending = self._leaving = self._staged.hand_in(self._outgoing, self._tag)

    def leave(self) -> None:
        """Sends what has been handed in."""
        if self._leaving is not None:
            leaving, self._leaving = self._leaving, None
            with self._open_link():
                leaving.leave()

    def receive(self) -> int:
        self.leave()
        return super().receive()


class _Arrival:
    """A receive under way."""

    def __init__(self, at: Accelerator, buffers: Buffers, buffer: torch.Tensor, staged: torch.Tensor, into: torch.Tensor, receiving: Pending) -> None:
        self._at, self._buffers, self._buffer = at, buffers, buffer
        self._staged, self._into, self._receiving = staged, into, receiving

    def wait(self, timeout_s: float) -> None:
        self._receiving.wait(timeout_s)
        self._into.copy_(self._staged, non_blocking=True)
        self._buffers.give(self._buffer, self._at.mark())
