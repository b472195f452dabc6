"""Serves an app on a socket until a signal: binds first, says when it is ready, drains within a time limit, stops at once on a second signal."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from hetserve.engine.api import EngineApi
from hetserve.engine.server.app import Service
from hetserve.engine.server.protocol import connection_class
from hetserve.errors import ResourceError, UsageError

log = logging.getLogger(__name__)

BACKLOG = 2048
SEND_BYTES = 128 << 10  # the kernel's buffer for one connection; without this it grows to megabytes for a client that never reads
CLOSE_S = 15.0  # for the engine to stop, once nothing runs
SPARE_FILES = 64  # descriptors that are not connections
STOPPING = "the server is stopping"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address, not listening yet; port 0 takes a free one.

    Raises:
        ResourceError: the port is in use, or not ours to take.
        UsageError: there is no such host.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise UsageError(f"there is no network address called {host!r}", "--host 127.0.0.1 serves this machine alone") from None
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # `localhost` is 127.0.0.1 to most clients
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_bind(host, port, error) from None
    return bound


def _cannot_bind(host: str, port: int, error: OSError) -> ResourceError:
    if error.errno == errno.EADDRINUSE:
        return ResourceError(f"port {port} on {host} is in use", "choose another with --port; --port 0 takes a free one")
    return ResourceError(f"port {port} on {host} cannot be used: {error.strerror}", "choose another with --port (above 1023) or --host")


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach the address."""
    address = str(bound.getsockname()[0])
    return address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1")


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allow_connections(wanted: int) -> int:
    """Raises this process's limit on open files towards what so many connections need; how many fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard - SPARE_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted + SPARE_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + SPARE_FILES, hard))
    return wanted


def event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's loop, which spends less on sockets; asyncio's own (None) where it is not installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class HttpServer(uvicorn.Server):
    """uvicorn's server with our way of stopping: what runs longer than the drain limit gets an error, any second signal ends everything.

    Args:
        app: with its `service`.
        ready: called once connections are accepted.
    """

    def __init__(self, app: Starlette, service: Service, ready: Callable[[], None] = lambda: None) -> None:
        limits = service.limits
        config = uvicorn.Config(
            app,
            http=connection_class(limits),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # a line for every bad request would let clients fill the log
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(limits.idle_s),
            timeout_graceful_shutdown=int(limits.drain_s) + 2,  # requests have got their error by then; whoever does not read it is cut off
        )
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        late = self._loop.call_later(self._service.limits.drain_s, self._service.fail_all, STOPPING)
        await super().shutdown(sockets)
        late.cancel()
        self._stop_now()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._stop_now)
        self.should_exit = True

    def _stop_now(self) -> None:
        self._service.fail_all(STOPPING)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def start(engine: EngineApi) -> None:
    """Starts the engine. From here until `serve`, SIGINT and SIGTERM cancel the calling task.

    Raises:
        HetserveError: the engine did not start.
        CancelledError: a signal came.
    """
    task = asyncio.current_task()
    assert task is not None
    for sig in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(sig, task.cancel)
    await engine.start()


async def serve(app: Starlette, service: Service, bound: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serves until SIGINT or SIGTERM, then drains.

    Raises:
        ResourceError: somebody else has taken the port meanwhile.
    """
    for sig in STOP_SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(sig)  # uvicorn's count now
    host, port = bound.getsockname()[:2]
    try:
        await HttpServer(app, service, ready).serve([bound])
    except OSError as error:
        raise _cannot_bind(host, port, error) from None
    finally:
        service.close()


async def close(engine: EngineApi) -> None:
    """Stops the engine; one that does not stop is left behind after a while."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await engine.close(drain=False)
    except TimeoutError:
        log.warning("the engine did not stop within %.0f s", CLOSE_S)
