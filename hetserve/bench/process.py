"""A server under test as a process tree: started on given cores, awaited, stopped, frozen while the other system runs, its CPU time read.

Works on the tree and on nothing else: signals go by process id to what was started here.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from hetserve.errors import HetserveError, ResourceError

POLL_S = 0.25
ASK_S = 5.0  # how long a ready server may take to answer /health
DRAIN_S = 20.0
FREEZE_S = 5.0  # for the signal to reach every process of a loaded machine
STOP_S = 30.0  # for a clean stop of the server
CHILDREN_S = 2.0  # for what is left of its tree, after each further signal
TAIL_LINES = 25
BUSY = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})?\s+([0-9.e+]+)", re.MULTILINE)


@dataclass(frozen=True)
class Launch:
    """How to start a server.

    Attributes:
        name: the system's name in results.
        command: program and arguments.
        environment: set beside what this process has; a value of None removes the name.
        cores: what the tree may run on at the start; a server may narrow that itself.
        control_cores: where everything but the engine processes is put once the server is up; None when it sees to that itself.
        engine: what an engine process has in its command line.
        url: where it will listen, without a path.
        log: file for everything it prints.
        error: the error to raise when it does not come up.
        hint: what to try then.
        noise: lines of the log that begin so say nothing, and are left out where its end is shown.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str | None]
    cores: tuple[int, ...]
    url: str
    log: Path
    error: type[HetserveError]
    hint: str = ""
    noise: tuple[str, ...] = ()
    control_cores: tuple[int, ...] | None = None
    engine: str = ""


class Server:
    """One running server. Use as a context manager: leaving it stops the tree, frozen or not."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.name = launch.name
        self.url = launch.url
        self.frozen = False
        self.replicas: tuple[tuple[str, float], ...] = ()
        environment = {**os.environ, **launch.environment}
        with launch.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["taskset", "-c", ",".join(map(str, launch.cores)), *launch.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in environment.items() if value is not None},
                start_new_session=True,  # a Ctrl-C on the terminal is for us; we then stop the server ourselves
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_ready(self, limit_s: float, tick: Callable[[], None] = lambda: None) -> None:
        """Returns once /health answers 200; `tick` is called at every look.

        Raises:
            the launch's error: the server ended, or is not ready in time; the message has the end of its log.
        """
        end_s = time.monotonic() + limit_s
        while get(self.url, "/health")[0] != 200:
            if self._process.poll() is not None:
                raise self._failure(f"ended with exit code {self._process.returncode} before it was ready")
            if time.monotonic() > end_s:
                raise self._failure(f"was not ready after {limit_s:.0f} s")
            tick()
            time.sleep(POLL_S)
        self._pin_control()

    def require_alive(self, grace_s: float = 0.0) -> None:
        """Raises the launch's error if the server has ended, or ends within `grace_s` (its requests fail a moment before it is gone)."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
            raise self._failure(f"ended with exit code {self._process.returncode} while it was measured")

    def freeze(self) -> None:
        """Stops the whole tree (SIGSTOP) once it is idle, so that it takes nothing from the system that runs now. Returns when it stands still."""
        drain(self.url)
        members = self.tree()
        self._signal_all(signal.SIGSTOP, members)
        self.frozen = True
        _wait_until_none(_moves, members, FREEZE_S)

    def thaw(self) -> None:
        """Lets a frozen tree go on, children first."""
        self._signal_all(signal.SIGCONT, self.tree()[::-1])
        self.frozen = False

    def cpu_s(self) -> float:
        """CPU seconds of the live tree so far, user and system."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def tree(self) -> list[psutil.Process]:
        """The server's processes, parents first: its descendants, and what is left in its session when a parent died."""
        found: dict[int, psutil.Process] = {}
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._process.pid)
            found = {process.pid: process for process in [root, *root.children(recursive=True)]}
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == self._process.pid:
                    found.setdefault(process.pid, process)
        return list(found.values())

    def stop(self) -> None:
        """SIGINT to the server, and, to whatever of its tree that does not end, SIGTERM and at last SIGKILL. Takes bounded time, uninterrupted."""
        with _uninterrupted():
            members = self.tree()
            if self.frozen:
                self.thaw()
            self._signal_all(signal.SIGINT, members[:1])
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
            for attempt in (signal.SIGTERM, signal.SIGKILL):
                members = _outliving(members, CHILDREN_S)
                self._signal_all(attempt, members)
            _outliving(members, CHILDREN_S)
            self._process.wait()

    def log_tail(self) -> str:
        """The end of what the server printed."""
        lines = [line for line in self.launch.log.read_text(errors="replace").strip().splitlines() if not line.startswith(self.launch.noise)]
        return "\n".join(lines[-TAIL_LINES:])

    def _pin_control(self) -> None:
        """Puts every thread of every process that is no engine process on the control cores."""
        if self.launch.control_cores is None:
            return
        for process in self.tree():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if self.launch.engine not in " ".join(process.cmdline()):
                    for thread in process.threads():
                        os.sched_setaffinity(thread.id, self.launch.control_cores)

    def _failure(self, what: str) -> HetserveError:
        return self.launch.error(f"{self.name} {what}. The end of its log ({self.launch.log}):\n{self.log_tail()}", hint=self.launch.hint)

    def _signal_all(self, which: signal.Signals, processes: list[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(which)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignores SIGINT and SIGTERM: `timeout` and impatient people send a second one, which would leave the rest of the servers running."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {which: signal.signal(which, signal.SIG_IGN) for which in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _outliving(processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those that still run after `limit_s`, or as soon as none does. A zombie does not: its parent, which may never look, is all it waits for."""
    return _wait_until_none(_runs, processes, limit_s)


def _wait_until_none(what: Callable[[psutil.Process], bool], processes: list[psutil.Process], limit_s: float) -> list[psutil.Process]:
    """Those of which `what` still holds after `limit_s`; returns as soon as there are none."""
    end_s = time.monotonic() + limit_s
    while True:
        left = [process for process in processes if what(process)]
        if not left or time.monotonic() > end_s:
            return left
        time.sleep(POLL_S / 10)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


def _moves(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return _runs(process) and process.status() != psutil.STATUS_STOPPED
    return False


def get(url: str, path: str) -> tuple[int, str]:
    """Status and body of a GET; status 0 when nobody answers. Never through a proxy."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ASK_S)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def drain(url: str) -> None:
    """Waits until the server's metrics show no request running or waiting; servers without such metrics are taken at their word."""
    end_s = time.monotonic() + DRAIN_S
    while time.monotonic() < end_s:
        busy = BUSY.findall(get(url, "/metrics")[1])
        if not any(float(count) for count in busy):
            return
        time.sleep(POLL_S)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody uses now.

    Raises:
        ResourceError: there is none.
    """
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ResourceError(f"No free port on 127.0.0.1: {error}.") from error
