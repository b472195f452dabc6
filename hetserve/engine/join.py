"""Workers of other machines: where they knock (`Door`), how they are reached (`JoinedChannel`), and how they knock (`knock`).

Every socket is locked with the engine's token. Who a worker is, it says itself: each device of the plan's other nodes is let in once.
"""

from __future__ import annotations

import queue
import socket as tcp
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import zmq
from zmq.utils.monitor import recv_monitor_message

from hetserve.engine.channel import STOP_S
from hetserve.engine.keys import lock, unlock
from hetserve.engine.sockets import SocketChannel
from hetserve.engine.wire import WorkerConfig
from hetserve.errors import ResourceError, UsageError, WorkerError
from hetserve.spec.cluster import ISAS
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.load import load_model

POLL_MS = 200
KNOCK_S = 10.0  # an engine that is there answers much sooner
HEARTBEAT_MS = 1000
SILENCE_MS = 10_000  # a connection without a heartbeat for this long is taken for dead


@dataclass(frozen=True)
class Knock:
    """A worker wants to join."""

    device: str
    address: str  # where its peers reach it
    isa: str  # the best it has
    cores: tuple[int, ...]  # that it may use
    model: str  # the fingerprint of its model's shape; empty: it takes the engine's path


@dataclass(frozen=True)
class Answer:
    """What it is told: its configuration and where to connect, or why not."""

    refused: str = ""
    config: WorkerConfig | None = None
    steps_url: str = ""
    results_url: str = ""


def split_address(text: str, flag: str) -> tuple[str, int]:
    """HOST:PORT.

    Raises:
        UsageError: it is none.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"{flag} must be HOST:PORT, got {text!r}", f"{flag} 127.0.0.1:7000")
    return host, int(port)


def watch(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """A monitor that hears of the socket's connections; heartbeats make a silent one end."""
    for option, value_ms in ((zmq.HEARTBEAT_IVL, HEARTBEAT_MS), (zmq.HEARTBEAT_TIMEOUT, SILENCE_MS), (zmq.HEARTBEAT_TTL, SILENCE_MS)):
        socket.setsockopt(option, value_ms)
    return socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)


def is_cut(monitor: zmq.Socket[bytes]) -> bool:
    """Whether a watched connection has ended since it was last asked."""
    cut = False
    while monitor.poll(0):
        recv_monitor_message(monitor)
        cut = True
    return cut


class Door:
    """Where workers knock: one socket, answered by one thread.

    Args:
        address: HOST:PORT to listen on.
        token: the shared secret.

    Raises:
        ResourceError: the address cannot be had.
    """

    def __init__(self, address: str, token: bytes) -> None:
        self.host, self.port = split_address(address, "--join-address")
        self.token = token
        self._waiting: dict[str, tuple[WorkerConfig, str, str]] = {}  # device -> its config, steps and results
        self._inside: set[str] = set()  # devices let in
        self._lock = threading.Lock()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        lock(self._socket, token)
        try:
            self._socket.bind(f"tcp://{self.host}:{self.port}")
        except zmq.ZMQError as error:
            self._socket.close()
            raise ResourceError(f"workers cannot be let in at {address}: {error}", "another --join-address") from None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="door", daemon=True)
        self._thread.start()

    def expect(self, config: WorkerConfig, steps_url: str, results_url: str) -> None:
        """Lets one worker in for this device."""
        with self._lock:
            self._waiting[config.device] = (config, steps_url, results_url)

    def meeting(self) -> str:
        """Where workers find each other: a store that this process keeps from now on. Its users are not asked for the token."""
        from torch import distributed

        self._store = distributed.TCPStore(self.host, 0, is_master=True, wait_for_workers=False)
        return f"tcp://{self.host}:{self._store.port}"

    def close(self) -> None:
        self._closing.set()
        self._thread.join(STOP_S)
        self._socket.close()
        self._context.term()

    def _answer(self) -> None:
        while not self._closing.is_set():
            if self._socket.poll(POLL_MS):
                self._socket.send(msgspec.msgpack.encode(self._admit(self._socket.recv())))

    def _admit(self, raw: bytes) -> Answer:
        try:
            knock = msgspec.msgpack.decode(raw, type=Knock)
        except msgspec.DecodeError:
            return Answer("it was not understood: is the worker of the same version as the engine?")
        with self._lock:
            if why := self._refusal(knock):
                return Answer(why)
            self._inside.add(knock.device)
            config, steps_url, results_url = self._waiting.pop(knock.device)
        return Answer("", replace(config, address=knock.address), steps_url, results_url)

    def _refusal(self, knock: Knock) -> str:
        """Why a worker is not let in; empty if it is. It may try again."""
        if knock.device in self._inside:
            return f"device {knock.device!r} has joined already, and one that was lost is let in again only by a new engine"
        if knock.device not in self._waiting:
            return f"no device {knock.device!r} is waited for; waiting for: {', '.join(sorted(self._waiting)) or 'none'}"
        config = self._waiting[knock.device][0]
        missing = sorted(set(config.cores) - set(knock.cores))
        if missing:
            return f"device {knock.device!r} has the cores {missing} in the cluster file, but the worker may use only {list(knock.cores)}"
        if config.isa and config.isa not in ISAS[: ISAS.index(knock.isa) + 1 if knock.isa else 0]:
            return f"device {knock.device!r} has {config.isa} in the cluster file, but the worker's machine only {knock.isa or 'less than AVX2'}"
        if knock.model and knock.model != model_fingerprint(load_model(config.model_folder)):
            return f"the worker's model has another shape than the engine's, {Path(config.model_folder).name!r}"
        return ""


class JoinedChannel(SocketChannel):
    """A worker that was started on another machine and joined. It ends when its connection does."""

    def __init__(self, config: WorkerConfig, door: Door) -> None:
        super().__init__(config)
        self._door = door
        self._cut: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._why = ""

    def kill(self) -> None:
        """It cannot be ended from here; nothing more is said to it or heard of it."""
        self._cut.put("it was given up")

    def _launch(self, steps: zmq.Socket[bytes], results: zmq.Socket[bytes]) -> None:
        for socket in (steps, results):
            lock(socket, self._door.token)
        self._monitor = watch(results)
        ports = [socket.bind_to_random_port(f"tcp://{self._door.host}") for socket in (steps, results)]
        self._door.expect(self._config, *(f"tcp://{self._door.host}:{port}" for port in ports))

    def _gone(self) -> str:
        if not self._why and not self._cut.empty():
            self._why = self._cut.get()
        if not self._why and is_cut(self._monitor):
            self._why = "its connection ended"
        return self._why

    def _wait(self) -> None:
        """It was told to stop, and does; nobody here needs to see it."""


def knock(address: str, token: bytes, said: Knock) -> Answer:
    """Asks the engine at HOST:PORT to be let in.

    Raises:
        WorkerError: nobody listens there or the tokens differ, or the engine refuses.
    """
    host, port = split_address(address, "--join")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        unlock(socket, token)
        socket.connect(f"tcp://{host}:{port}")
        socket.send(msgspec.msgpack.encode(said))
        if not socket.poll(int(KNOCK_S * 1000)):
            if not _listens(host, port):
                raise WorkerError(f"nobody listens at {address}", f"is the engine running, with --join-address {address}?")
            what = f"the engine at {address} did not answer within {KNOCK_S:.0f} s"
            raise WorkerError(what, "is the token the same on both sides, and is that port its --join-address?")
        answer = msgspec.msgpack.decode(socket.recv(), type=Answer)
    context.term()
    if answer.refused:
        raise WorkerError(f"the engine at {address} refused: {answer.refused}")
    return answer


def _listens(host: str, port: int) -> bool:
    try:
        with tcp.create_connection((host, port), KNOCK_S):
            return True
    except OSError:
        return False
