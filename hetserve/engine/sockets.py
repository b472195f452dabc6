"""Workers in processes of their own, reached over ZeroMQ: steps and moves one way, results the other.

Who starts the process, and how its end is noticed, is what the subclasses differ in.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path

import msgspec
import zmq

from hetserve import errors
from hetserve.engine.channel import STOP_S, Lost, Outgoing, Post, raise_failed
from hetserve.engine.wire import FROM_WORKER, Failed, Ready, WorkerConfig

POLL_MS = 200  # how often a quiet worker is looked at
START_S = 600.0  # reading and packing a large model from a cold disk takes minutes


class SocketChannel(ABC):
    """A worker behind two sockets.

    Args:
        config: what the worker is told.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.device = config.device
        self._config = config
        self._is_ready = False
        self._first: queue.SimpleQueue[Ready | Failed | Lost] = queue.SimpleQueue()
        self._closing = False
        self._launching = threading.Lock()  # a signal may close the channel while another thread starts it
        self._launched = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    @abstractmethod
    def _launch(self, steps: zmq.Socket[bytes], results: zmq.Socket[bytes]) -> None:
        """Binds the sockets and sees to it that a worker connects to them."""

    @abstractmethod
    def _gone(self) -> str:
        """Why the worker is gone; empty while it is there."""

    @abstractmethod
    def _wait(self) -> None:
        """Waits until the worker, which was told to stop, has; ends it if it does not."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the worker at once; the reader then posts Lost."""

    def start(self, post: Post) -> None:
        """Starts the worker; nothing if the channel was closed already."""
        with self._launching:
            if self._closing:
                return
            self._steps, self._results = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
            self._steps.setsockopt(zmq.LINGER, 0)
            self._launch(self._steps, self._results)
            self._launched = True
            self._reader = threading.Thread(target=self._read, args=(post,), name=f"worker {self.device}", daemon=True)
            self._reader.start()

    def ready(self) -> Ready:
        """Waits until the worker is ready.

        Raises:
            ModelError, ResourceError, ...: whatever the worker reported; WorkerError if it died, was stopped or took longer than START_S.
        """
        deadline_s = time.monotonic() + START_S
        while not self._closing and time.monotonic() < deadline_s:
            with contextlib.suppress(queue.Empty):
                first = self._first.get(timeout=POLL_MS / 1000)
                if isinstance(first, Ready):
                    return first
                if isinstance(first, Failed):
                    raise_failed(first, self.device)
                raise errors.WorkerError(f"the worker for device {self.device!r}: {first.reason}, before it was ready", "see its output above")
        if self._closing:
            raise errors.WorkerError(f"the worker for device {self.device!r} was stopped before it was ready")
        raise errors.WorkerError(f"the worker for device {self.device!r} was not ready after {START_S:.0f} s", "a smaller model starts faster")

    def send(self, outgoing: Outgoing) -> None:
        self._send(outgoing.raw)

    def close(self) -> None:
        """Asks the worker to stop, ends it if it does not or is not even ready, and frees the sockets."""
        with self._launching:
            if self._closing:
                return
            self._closing = True
        if self._launched:
            if not self._gone():
                self._send(b"") if self._is_ready else self.kill()
                self._wait()
            self._reader.join(STOP_S)
        self._context.destroy()

    def _send(self, message: bytes) -> None:
        """Sends, or lets it be where the worker has closed its end: a socket without a peer would wait for one for ever.

        Such a worker is about to exit, and whoever reads its results or waits for its process learns of it there.
        """
        with contextlib.suppress(zmq.Again):
            self._steps.send(message, zmq.NOBLOCK)

    def _read(self, post: Post) -> None:
        """The reader thread: the first message for `ready`, then results as they come, then once that the worker is gone."""
        while not self._closing:
            if self._results.poll(POLL_MS):
                message = FROM_WORKER.decode(self._results.recv())
                if isinstance(message, Failed):
                    return self._end(message, Lost(self.device, message.message.strip().splitlines()[-1]), post)
                if isinstance(message, Ready):
                    self._is_ready = True
                    self._first.put(message)
                else:
                    post(message)
            elif gone := self._gone():
                if not self._closing:
                    lost = Lost(self.device, gone)
                    self._end(lost, lost, post)
                return

    def _end(self, first: Failed | Lost, later: Lost, post: Post) -> None:
        """The worker is gone: tells `ready` if that waits, else whoever hears of results."""
        if self._is_ready:
            post(later)
        else:
            self._first.put(first)


class ProcessChannel(SocketChannel):
    """A worker process of this machine, started here, over ipc sockets.

    Args:
        socket: a path for them, in a folder of the engine's own; each adds an ending.
    """

    def __init__(self, config: WorkerConfig, socket: Path) -> None:
        super().__init__(config)
        self._socket = socket

    def kill(self) -> None:
        self.process.kill()

    def _launch(self, steps: zmq.Socket[bytes], results: zmq.Socket[bytes]) -> None:
        steps_url, results_url = (f"ipc://{self._socket}.{name}" for name in ("steps", "results"))
        steps.bind(steps_url)
        results.bind(results_url)
        command = [sys.executable, "-m", "hetserve.engine.process", steps_url, results_url]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(self._config))
        self.process.stdin.close()

    def _gone(self) -> str:
        return "" if self.process.poll() is None else f"its process ended with code {self.process.returncode}"

    def _wait(self) -> None:
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
