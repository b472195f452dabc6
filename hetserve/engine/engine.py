"""The engine as the server sees it: submit, cancel, stop, health, numbers. Owns the workers, the controller and the thread that drives them."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hetserve.control.config import config_from_plan
from hetserve.control.controller import Controller
from hetserve.control.messages import Arrived, Cancelled, Command, Event, Reject, Request, Sampling, Stopped
from hetserve.drive import Observer, drive
from hetserve.engine.api import PoolState, Sink
from hetserve.engine.channel import Channel, make_channels, plan_layout
from hetserve.engine.executor import Closing, EngineExecutor
from hetserve.engine.runnable import require_runnable
from hetserve.engine.streams import Streams
from hetserve.engine.timeline import NOTES_FOLDER, ChromeTrace, Recorder, read_spans
from hetserve.engine.wire import Ready
from hetserve.errors import UsageError
from hetserve.spec.load import load_model
from hetserve.spec.plan import Plan
from hetserve.systems import policies_for

if TYPE_CHECKING:
    from hetserve.engine.join import Door

DRAIN_POLL_S = 0.02


class Engine:
    """Serves one model by one plan (`hetserve.engine.api.EngineApi`).

    Args:
        plan: pools, limits, and whose policies decide.
        folder: the model, a Hugging Face checkpoint of the plan's shape.
        journal: where to record events and commands; None: nowhere.
        timeline: where to write the run as a Chrome trace, once the engine is closed; None: nowhere.
        in_process: run the workers on threads of this process (tests, machines without ZeroMQ) instead of processes of their own.
        door: where workers of other nodes join; closed with the engine.
        on_lost: told each device that is lost, and why; on a thread of the engine's.

    Raises:
        SpecError: the plan was made for another model.
        UnsupportedError: the plan needs what this engine cannot do yet.
    """

    def __init__(
        self,
        plan: Plan,
        folder: str | Path,
        journal: Path | None = None,
        in_process: bool = False,
        timeline: Path | None = None,
        door: Door | None = None,
        on_lost: Callable[[str, str], None] = lambda device, reason: None,
    ) -> None:
        self.spec = load_model(folder)
        plan.require_model(self.spec)
        self.plan = plan
        require_runnable(plan)
        self.max_model_len = plan.limits.max_model_len
        self._config = config_from_plan(plan)
        self._controller = Controller(self._config, policies_for(plan.system, plan.online))
        self._folder = Path(folder)
        self._in_process = in_process
        self._door = door
        self._on_lost = on_lost
        self._timed = Timed(self._controller)
        self._channels: dict[str, Channel] = {}
        self._journal_path = journal
        self._timeline_path = timeline
        self._ids = itertools.count()
        self._stop_reason = ""
        self.ready: dict[str, Ready] = {}  # by device

    async def start(self) -> None:
        """Starts the workers and the control thread; returns when the model is loaded.

        Raises:
            UsageError: the journal or the timeline cannot be written.
            HetserveError: whatever a worker reported (ModelError, ResourceError, ...); nothing is left running.
        """
        loop = asyncio.get_running_loop()
        self._streams = Streams(loop)
        self._private = tempfile.TemporaryDirectory(prefix="hetserve-")
        if self._timeline_path is not None:
            (Path(self._private.name) / NOTES_FOLDER).mkdir()
        folder, longest_step_s = Path(self._private.name), self._config.longest_step_s
        self._channels = make_channels(self.plan, self._folder, folder, self._in_process, self._door, longest_step_s)
        self._executor = EngineExecutor(self._channels, plan_layout(self.plan), self._streams, on_lost=self._on_lost)
        self._files = ExitStack()
        try:
            self._observe = self._observer(self._files)
            for channel in self._channels.values():
                channel.start(self._executor.post)
            waits = [loop.run_in_executor(None, channel.ready) for channel in self._channels.values()]
            self.ready = dict(zip(self._channels, await asyncio.gather(*waits), strict=True))
        except BaseException:
            self._files.close()
            self._close_channels()
            raise
        self._thread = threading.Thread(target=self._drive, name="control", daemon=True)
        self._thread.start()

    async def close(self, drain: bool = True) -> None:
        """Stops the engine; with `drain`, requests that run are finished first. Open requests otherwise end with finish="error"."""
        while drain and self.health()[0] and self._streams.open_requests:
            await asyncio.sleep(DRAIN_POLL_S)
        self._stop_reason = self._stop_reason or "the engine was stopped"
        self._executor.post(Closing())
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._thread.join)
        await loop.run_in_executor(None, self._close_channels)
        self._streams.fail_all(self._stop_reason)

    def submit(
        self,
        prompt: list[int],
        max_tokens: int,
        n: int,
        stop_token_ids: tuple[int, ...],
        min_tokens: int,
        sampling: Sampling,
        sink: Sink,
    ) -> int:
        """Hands in one request; its outputs go to `sink` in the event loop's thread. Returns its id. Call from the event loop's thread."""
        request = Request(next(self._ids), np.asarray(prompt, np.int32), max_tokens, n, stop_token_ids, min_tokens, sampling)
        self._streams.open(request.id, n, sink)
        if self._stop_reason:
            self._streams.reject(Reject(request.id, self._stop_reason))
            self._streams.flush()
        else:
            self._executor.post(partial(Arrived, request=request))
        return request.id

    def cancel(self, request: int) -> None:
        """Nothing more is wanted of this request; its pages are freed. Unknown or finished requests are no error."""
        self._streams.forget(request)
        self._executor.post(partial(Cancelled, request=request))

    def stop(self, request: int, choice: int, at_token: int) -> None:
        """A stop string was found: the choice ends after `at_token` generated tokens."""
        self._executor.post(partial(Stopped, request=request, choice=choice, at_token=at_token))

    def health(self) -> tuple[bool, str]:
        """Whether requests are being served, and if not, why."""
        if self._stop_reason:
            return False, self._stop_reason
        if self._controller.serves():
            return True, ""
        return False, "; ".join(f"device {device!r} was lost: {reason}" for device, reason in self._executor.lost.items())

    def stats(self) -> dict[str, float]:
        """The controller's counts and CPU time, steps, and where their time went (`*_s`). Read without a lock: two numbers may be one event apart."""
        counts = self._controller.counts()
        parts = {f"{part}_s": seconds for part, seconds in self._executor.parts_s.items()}
        return {
            **counts,
            **parts,
            "kv_usage": 1 - counts["pages_free"] / counts["pages"],
            "steps_total": self._executor.steps,
            "step_s": self._executor.step_s,
            "controller_s": self._timed.cpu_s,
        }

    def pools(self) -> list[PoolState]:
        """Every device's part of every stage. Read without a lock, as `stats`."""
        used_s = {name: cpu_s(channel.process.pid) for name, channel in self._channels.items() if hasattr(channel, "process")}
        return [
            PoolState(
                device=pool.device,
                group=number,
                role=group.role,
                layers=stage.layers,
                primary=pool.device in stage.primary,
                pages=pool.pages,
                pages_free=free,
                cpu_s=used_s.get(pool.device),
                lost=pool.device in self._executor.lost,
            )
            for number, group in enumerate(self.plan.groups)
            for (stage, pool), free in zip(
                ((stage, pool) for stage in group.stages for pool in stage.pools),
                self._controller.groups[number].pools.free_each().tolist(),
                strict=True,
            )
        ]

    def _drive(self) -> None:
        """The control thread. A fault of ours ends every request with an error, never with a hang."""
        try:
            with self._files:
                drive(self._timed, self._executor, self._observe)
        except Exception as error:
            self._stop_reason = f"the controller failed: {type(error).__name__}: {error}"
            self._streams.fail_all_soon(self._stop_reason)
            raise

    def _observer(self, files: ExitStack) -> Observer | None:
        """Whatever is to be written while the engine runs."""
        observers: list[Observer] = []
        if self._journal_path is not None:
            from hetserve.control.journal import Journal  # needs msgspec, as nothing else does of an engine in one process

            observers.append(Journal(files.enter_context(_new(self._journal_path, "journal", "wb")).write, self._config))
        if self._timeline_path is not None:
            trace = ChromeTrace(files.enter_context(_new(self._timeline_path, "timeline", "w")).write)
            observers.append(Recorder(plan_layout(self.plan), trace, time.monotonic, lambda: self._executor.parts_s))
            files.callback(self._add_notes, trace)

        def observe(event: Event, commands: Sequence[Command]) -> None:
            for one in observers:
                one(event, commands)

        return observe if observers else None

    def _add_notes(self, trace: ChromeTrace) -> None:
        """Ends the trace with what the workers noted; they must have stopped to have written it all."""
        for channel in self._channels.values():
            channel.close()
        for path in sorted((Path(self._private.name) / NOTES_FOLDER).iterdir()):
            for span in read_spans(path):
                trace(span)
        trace.close()

    def _close_channels(self) -> None:
        for channel in self._channels.values():
            channel.close()
        if self._door is not None:
            self._door.close()
        self._private.cleanup()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers; empty when they are threads of this process."""
        return [channel.process.pid for channel in self._channels.values() if hasattr(channel, "process")]


class Timed:
    """A controller, and the CPU time its decisions have taken: what a thread that waits for a core meanwhile loses is not in it."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.cpu_s = 0.0

    def handle(self, event: Event) -> list[Command]:
        since_s = time.thread_time()
        commands = self._controller.handle(event)
        self.cpu_s += time.thread_time() - since_s
        return commands


def _new(path: Path, what: str, mode: str) -> IO[Any]:
    """An empty file to write to.

    Raises:
        UsageError: it cannot be had.
    """
    try:
        return path.open(mode)
    except OSError as error:
        said = f"the {what} cannot be written to {str(path)!r}: {error.strerror}"
        raise UsageError(said, f"--{what} takes a file in a folder that is there") from None


def cpu_s(pid: int) -> float | None:
    """CPU seconds a process has used so far, user and system; None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
