"""How the executor reaches a worker: a process of its own (ZeroMQ), or a thread in this process (tests; machines without ZeroMQ).

A channel sends steps and posts what comes back into the executor's queue: a result, or that the worker is lost. It decides nothing.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from hetserve import errors
from hetserve.control.messages import RunStep
from hetserve.engine.wire import FROM_WORKER, TO_WORKER, Failed, Ready, StepResult, WorkerConfig
from hetserve.spec.plan import Group, Plan

STOP_S = 10.0  # how long a worker may take to stop by itself before it is killed
POLL_MS = 200  # how often a quiet worker's process is looked at
START_S = 600.0  # reading and packing a large model from a cold disk takes minutes


@dataclass(frozen=True)
class Lost:
    """The worker behind a channel is gone."""

    device: str
    reason: str


Post: TypeAlias = Callable[[StepResult | Lost], None]


class Channel(Protocol):
    """One worker, as the executor sees it."""

    device: str

    def start(self, post: Post) -> Ready: ...

    def send(self, step: RunStep) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


def raise_failed(failed: Failed, device: str) -> None:
    """Raises the error a worker reported, as the class it had there."""
    kind = getattr(errors, failed.kind, None) if failed.kind else None
    if kind is not None:
        raise kind(failed.message, failed.hint)
    raise errors.WorkerError(f"the worker for device {device!r} failed:\n{failed.message}", "this is a fault of hetserve; please report it")


class ProcessChannel:
    """A worker in a process of its own, on one machine, over ipc sockets in a private folder."""

    def __init__(self, config: WorkerConfig) -> None:
        self.device = config.device
        self._config = config
        self._closing = False
        self._launching = threading.Lock()  # a signal may close the channel while another thread starts it

    def start(self, post: Post) -> Ready:
        """Starts the process and waits until its model is loaded.

        Raises:
            ModelError, ResourceError, ...: whatever the worker reported; WorkerError if it died or took longer than START_S.
        """
        with self._launching:
            if self._closing:
                raise errors.WorkerError(f"the worker for device {self.device!r} was stopped before it was started")
            self._launch()
        ready = self._receive_ready()
        self._reader = threading.Thread(target=self._read, args=(post,), name=f"worker {self.device}", daemon=True)
        self._reader.start()
        return ready

    def send(self, step: RunStep) -> None:
        self._send(TO_WORKER.encode(step))

    def kill(self) -> None:
        """Ends the process at once; the reader then posts Lost."""
        self.process.kill()

    def close(self) -> None:
        """Asks the worker to stop, kills it if it does not, and frees the sockets."""
        with self._launching:
            if self._closing:
                return
            self._closing = True
            if not hasattr(self, "process"):
                return
        if self.process.poll() is None:
            self._send(b"")
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if hasattr(self, "_reader"):
            self._reader.join(STOP_S)
        self._steps.close()
        self._results.close()
        self._context.term()
        self._folder.cleanup()

    def _launch(self) -> None:
        """Binds the sockets and starts the process."""
        import zmq

        self._folder = tempfile.TemporaryDirectory(prefix="hetserve-")
        steps_url, results_url = (f"ipc://{self._folder.name}/{name}" for name in ("steps", "results"))
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

    def _receive_ready(self) -> Ready:
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            if self._results.poll(POLL_MS):
                message = FROM_WORKER.decode(self._results.recv())
                if isinstance(message, Ready):
                    return message
                self.close()
                raise_failed(message, self.device)
            if self.process.poll() is not None:
                code = self.process.returncode
                self.close()
                raise errors.WorkerError(f"the worker for device {self.device!r} ended with code {code} before it was ready", "see its output above")
        self.kill()
        self.close()
        raise errors.WorkerError(f"the worker for device {self.device!r} was not ready after {START_S:.0f} s", "a smaller model starts faster")

    def _read(self, post: Post) -> None:
        """The reader thread: results as they come, then once that the worker is gone."""
        while not self._closing:
            if self._results.poll(POLL_MS):
                message = FROM_WORKER.decode(self._results.recv())
                if isinstance(message, Failed):
                    return post(Lost(self.device, message.message.strip().splitlines()[-1]))
                post(message)
            elif self.process.poll() is not None:
                if not self._closing:
                    post(Lost(self.device, f"its process ended with code {self.process.returncode}"))
                return


class InlineChannel:
    """A worker on a thread of this process: same steps, same results, nothing encoded."""

    def __init__(self, config: WorkerConfig) -> None:
        self.device = config.device
        self._config = config
        self._steps: queue.SimpleQueue[RunStep | None] = queue.SimpleQueue()

    def start(self, post: Post) -> Ready:
        from hetserve import _C
        from hetserve.engine.worker import Worker
        from hetserve.spec.load import load_model

        self._post = post
        self.worker = Worker(self._config, load_model(Path(self._config.model_folder)))
        self._thread = threading.Thread(target=self._run, name=f"worker {self.device}", daemon=True)
        self._thread.start()
        return Ready(_C.info()["isa"], _C.get_threads(), self.worker.model.weight_bytes, self.worker.memory.size_bytes)

    def send(self, step: RunStep) -> None:
        self._steps.put(step)

    def kill(self) -> None:
        self._steps.put(None)
        self._post(Lost(self.device, "it was stopped"))

    def close(self) -> None:
        self._steps.put(None)
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                self._post(self.worker.run(step))
            except Exception as error:
                return self._post(Lost(self.device, f"{type(error).__name__}: {error}"))


def make_channels(plan: Plan, folder: Path, in_process: bool) -> dict[int, Channel]:
    """Group number -> its worker's channel, not started yet. The plan is one the controller takes (`config_from_plan`)."""
    kind = InlineChannel if in_process else ProcessChannel
    return {index: kind(_worker_config(plan, group, folder)) for index, group in enumerate(plan.groups)}


def _worker_config(plan: Plan, group: Group, folder: Path) -> WorkerConfig:
    stage = group.stages[0]
    device = plan.cluster.device(stage.primary[0])
    return WorkerConfig(
        device=device.name,
        cores=device.cores,
        isa=device.isa,
        model_folder=str(folder),
        dtype=plan.model.dtype,
        layers=stage.layers,
        pages=stage.pools[0].pages,
        page_tokens=plan.page_tokens,
        max_seqs=plan.limits.max_seqs,
        max_model_len=plan.limits.max_model_len,
    )
