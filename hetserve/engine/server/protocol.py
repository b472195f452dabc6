"""The connection: uvicorn's HTTP/1.1 protocol, plus limits on what a connection may hold and a pipe that writes a stream's chunks at once.

A stream of tokens through ASGI costs a task switch a token. A `Pipe` lets the engine's callback write straight to the socket's buffer, and that
buffer is the stream's only one: its size says how far the client lags behind.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from hetserve.engine.server.errors import SERVER, ApiError, bad
from hetserve.engine.server.limits import Limits

PIPE = "hetserve.pipe"  # its key in the ASGI scope
LINGER_S = 2.0  # what is left of a refused body is read and dropped for this long, so that the client gets to see the answer


class Pipe:
    """The connection of one request, as far as its handler needs more than ASGI.

    Writing is allowed between the response's start and its last body message, and only for responses of unknown length.
    """

    __slots__ = ("_transport", "lost", "on_lost")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.lost = False
        self.on_lost: Callable[[], None] | None = None  # called once, when the client is gone

    def write(self, data: bytes) -> None:
        """Sends one HTTP chunk. Never blocks: what the client does not take is kept."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def unsent_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def cut(self) -> None:
        """Ends the connection at once; what is unsent is dropped."""
        self._transport.abort()

    def lose(self) -> None:
        self.lost = True
        if self.on_lost is not None:
            self.on_lost()


class Connection(HttpToolsProtocol):
    """One connection under `limits` (set by `connection_class`)."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unanswered: deque[tuple[Pipe, RequestResponseCycle]] = deque()  # oldest first; pipelined requests wait their turn
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = False
        self._completed = False  # a request, by the data being parsed

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(ApiError(503, f"This server takes {self.limits.connections} connections at once.", code="too_many_connections", kind=SERVER))
        else:
            self._wait_at_most(self.limits.receive_s)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._wait_at_most(None)
        while self._unanswered:
            pipe, cycle = self._unanswered.popleft()
            cycle.disconnected = True  # uvicorn knows this of the newest request only
            cycle.message_event.set()
            pipe.lose()

    def data_received(self, data: bytes) -> None:
        self._completed = False
        super().data_received(data)
        if self._in_head and not self._completed:
            self._head_bytes += len(data)
            if self._head_bytes > self.limits.head_bytes:
                self._refuse(ApiError(431, f"The request's headers are longer than {self.limits.head_bytes} bytes.", code="headers_too_large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._wait_at_most(self.limits.receive_s)

    def on_headers_complete(self) -> None:
        self._in_head = False
        pipe = Pipe(self.transport)
        self.scope[PIPE] = pipe  # type: ignore[literal-required]
        super().on_headers_complete()
        self._unanswered.append((pipe, self.cycle))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._completed = True
        self._wait_at_most(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unanswered:
            self._unanswered.popleft()
        if self._deadline is not None and not self.transport.is_closing():
            self._wait_at_most(LINGER_S)  # answered before the request was complete

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it never took its last answer: closing would wait for that
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        self._refuse(bad(msg, code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Answers with an error and closes, before any handler has seen a request."""
        body = error.body()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[error.status] + head + body)
        self.transport.close()

    def _wait_at_most(self, limit_s: float | None) -> None:
        """Cuts the connection unless the request has arrived in `limit_s`; None: no limit."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if limit_s is None else self.loop.call_later(limit_s, self.transport.abort)


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class for uvicorn's configuration, which takes no arguments of ours."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
