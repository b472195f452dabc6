"""How the executor reaches a worker: a process of its own (ZeroMQ), or a thread in this process (tests; machines without ZeroMQ).

A channel sends messages and posts what comes back into the executor's queue: a result, or that the worker is lost. It decides nothing.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn, Protocol, TypeAlias

import msgspec

from hetserve import errors
from hetserve.control.messages import MoveKv, RunStep
from hetserve.engine.transport.local import LocalHub, LocalLinks
from hetserve.engine.wire import (
    FROM_WORKER,
    TO_WORKER,
    Failed,
    GroupLayout,
    MoveResult,
    PoolLayout,
    Ready,
    StageLayout,
    StepResult,
    WorkerConfig,
)
from hetserve.spec.plan import Plan

STOP_S = 10.0  # how long a worker may take to stop by itself before it is killed
POLL_MS = 200  # how often a quiet worker's process is looked at
START_S = 600.0  # reading and packing a large model from a cold disk takes minutes


@dataclass(frozen=True)
class Lost:
    """The worker behind a channel is gone."""

    device: str
    reason: str


Post: TypeAlias = Callable[[StepResult | MoveResult | Lost], None]


class Outgoing:
    """A message for one or more workers, encoded at most once."""

    def __init__(self, message: RunStep | MoveKv) -> None:
        self.message = message

    @cached_property
    def raw(self) -> bytes:
        return TO_WORKER.encode(self.message)


class Channel(Protocol):
    """One worker, as the executor sees it. `start` and `ready` are two, as workers wait for each other before they are ready."""

    device: str

    def start(self, post: Post) -> None: ...

    def ready(self) -> Ready: ...

    def send(self, outgoing: Outgoing) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


def raise_failed(failed: Failed, device: str) -> NoReturn:
    """Raises the error a worker reported, as the class it had there."""
    kind = getattr(errors, failed.kind, None) if failed.kind else None
    if kind is not None:
        raise kind(failed.message, failed.hint)
    raise errors.WorkerError(f"the worker for device {device!r} failed:\n{failed.message}", "this is a fault of hetserve; please report it")


class ProcessChannel:
    """A worker in a process of its own, on one machine, over ipc sockets in the engine's private folder."""

    def __init__(self, config: WorkerConfig, number: int) -> None:
        self.device = config.device
        self._config = config
        self._number = number  # names its sockets
        self._is_ready = False
        self._first: queue.SimpleQueue[Ready | Failed | Lost] = queue.SimpleQueue()
        self._closing = False
        self._launching = threading.Lock()  # a signal may close the channel while another thread starts it

    def start(self, post: Post) -> None:
        """Starts the process; nothing if the channel was closed already."""
        with self._launching:
            if not self._closing:
                self._launch()
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

    def kill(self) -> None:
        """Ends the process at once; the reader then posts Lost."""
        self.process.kill()

    def close(self) -> None:
        """Asks the worker to stop, kills it if it does not or is not even ready, and frees the sockets."""
        with self._launching:
            if self._closing:
                return
            self._closing = True
            if not hasattr(self, "process"):
                return
        if self.process.poll() is None:
            self._send(b"") if self._is_ready else self.process.kill()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(STOP_S)
        self._steps.close()
        self._results.close()
        self._context.term()

    def _launch(self) -> None:
        """Binds the sockets and starts the process."""
        import zmq

        steps_url, results_url = (f"ipc://{self._config.meeting}/{self._number}.{name}" for name in ("steps", "results"))
        self._context = zmq.Context()
        self._steps, self._results = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        self._steps.bind(steps_url)
        self._results.bind(results_url)
        self._steps.setsockopt(zmq.LINGER, 0)
        command = [sys.executable, "-m", "hetserve.engine.process", steps_url, results_url]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(self._config))
        self.process.stdin.close()

    def _send(self, message: bytes) -> None:
        """Sends, or lets it be where the worker has closed its end: a socket without a peer would wait for one for ever.

        Such a worker is about to exit, and whoever reads its results or waits for its process learns of it there.
        """
        import zmq

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
            elif self.process.poll() is not None:
                if not self._closing:
                    lost = Lost(self.device, f"its process ended with code {self.process.returncode}")
                    self._end(lost, lost, post)
                return

    def _end(self, first: Failed | Lost, later: Lost, post: Post) -> None:
        """The worker is gone: tells `ready` if that waits, else whoever hears of results."""
        if self._is_ready:
            post(later)
        else:
            self._first.put(first)


class InlineChannel:
    """A worker on a thread of this process: same messages, same results, nothing encoded."""

    def __init__(self, config: WorkerConfig, hub: LocalHub) -> None:
        self.device = config.device
        self._config = config
        self._hub = hub
        self._inbox: queue.SimpleQueue[RunStep | MoveKv | None] = queue.SimpleQueue()

    def start(self, post: Post) -> None:
        self._post = post

    def ready(self) -> Ready:
        from hetserve import _C
        from hetserve.engine.worker import Worker
        from hetserve.spec.load import load_model

        links = LocalLinks(self._hub, self.device)
        self.worker = Worker(self._config, load_model(Path(self._config.model_folder)), links.connect, self._post)
        self._thread = threading.Thread(target=self._run, name=f"worker {self.device}", daemon=True)
        self._thread.start()
        return Ready(_C.info()["isa"], _C.get_threads(), self.worker.weight_bytes, self.worker.kv_bytes)

    def send(self, outgoing: Outgoing) -> None:
        self._inbox.put(outgoing.message)

    def kill(self) -> None:
        self._leave()
        self._post(Lost(self.device, "it was stopped"))

    def close(self) -> None:
        self._leave()
        if hasattr(self, "_thread"):
            self._thread.join(STOP_S)
            self.worker.close()

    def _leave(self) -> None:
        self._hub.leave(self.device)
        self._inbox.put(None)

    def _run(self) -> None:
        while (message := self._inbox.get()) is not None:
            try:
                self.worker.handle(message)
            except Exception as error:
                self._hub.leave(self.device)
                return self._post(Lost(self.device, f"{type(error).__name__}: {error}"))


def plan_layout(plan: Plan) -> tuple[GroupLayout, ...]:
    """What workers are told of a plan."""
    groups = []
    for group in plan.groups:
        stages: list[StageLayout] = []
        for stage in group.stages:
            first_pool = sum(len(one.pools) for one in stages)
            stages.append(StageLayout(stage.layers, stage.weights, tuple(PoolLayout(pool.device, pool.pages) for pool in stage.pools), first_pool))
        groups.append(GroupLayout(tuple(stages), group.role != "mixed"))
    return tuple(groups)


def make_channels(plan: Plan, folder: Path, private: Path, in_process: bool) -> dict[str, Channel]:
    """Device -> its worker's channel, not started yet, for every device the plan uses. The plan is one the controller takes (`config_from_plan`).

    Args:
        folder: the model.
        private: an empty folder of the engine's own, for sockets and for the workers to find each other.
    """
    layout = plan_layout(plan)
    hub = LocalHub()
    channels: dict[str, Channel] = {}
    for name in dict.fromkeys(device for group in layout for device in group.devices):
        device = plan.cluster.device(name)
        config = WorkerConfig(
            device=name,
            cores=device.cores,
            isa=device.isa,
            model_folder=str(folder),
            dtype=plan.model.dtype,
            groups=layout,
            page_tokens=plan.page_tokens,
            max_seqs=plan.limits.max_seqs,
            max_model_len=plan.limits.max_model_len,
            meeting=str(private),
        )
        channels[name] = InlineChannel(config, hub) if in_process else ProcessChannel(config, len(channels))
    return channels
