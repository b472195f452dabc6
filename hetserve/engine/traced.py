"""What one worker did when, in its own words: steps, and within them its sends and the waits for peers. A file of spans, one JSON object a line.

Wraps links and results from outside, so that a worker that is not traced runs none of this.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from hetserve.control.messages import MoveKv, RunStep
from hetserve.engine.timeline import NOTES_FOLDER, Span
from hetserve.engine.transport.link import KINDS, MOVES, Connect, Link, Pending
from hetserve.engine.wire import WorkerConfig
from hetserve.spec.cluster import CPU

KIND_NAMES = ("heads", "hidden", "tokens", "losses", "kv")  # by link.py's numbers
STEP, LAUNCH = "step", "launch"
SHORTEST_S = 20e-6  # waits below this say nothing
BUFFER_BYTES = 1 << 18


class Notes:
    """One worker's file of spans. May be used from several threads.

    Args:
        device: whose.
        path: a new file.
        step: what its part in a step is called: on a GPU the launch, whose work goes on behind it.
    """

    def __init__(self, device: str, path: Path, step: str = STEP) -> None:
        self._step = step
        self._track = f"device {device}"
        self._file = path.open("wb", buffering=BUFFER_BYTES)
        self._lock = threading.Lock()

    def add(self, row: str, name: str, begin_s: float, end_s: float, **facts: Any) -> None:
        line = msgspec.json.encode(Span(self._track, row, name, begin_s, end_s, facts)) + b"\n"
        with self._lock:
            if not self._file.closed:
                self._file.write(line)

    @contextmanager
    def step(self, message: RunStep | MoveKv) -> Iterator[None]:
        """Around a worker's `handle`."""
        begin_s = time.monotonic()
        yield
        if isinstance(message, RunStep):
            facts = {"group": message.group, "prompt tokens": int(message.chunk_tokens.sum())}
            self.add("steps", f"{self._step} {message.step}", begin_s, time.monotonic(), **facts)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def notes_of(config: WorkerConfig) -> Notes | None:
    """Where this process's worker is to note its spans; None: nowhere. The file ends with the process."""
    folder = Path(config.meeting) / NOTES_FOLDER
    if not folder.is_dir():
        return None
    notes = Notes(config.device, folder / f"{os.getpid()}.jsonl", STEP if config.kind == CPU else LAUNCH)
    atexit.register(notes.close)
    return notes


def traced(connect: Connect, notes: Notes) -> Connect:
    """A `connect` whose links note what passes over them."""
    return lambda peer, plane: TracedLink(connect(peer, plane), notes, peer, "moves" if plane == MOVES else "steps")


class TracedLink:
    """A link that notes its sends and waits."""

    def __init__(self, link: Link, notes: Notes, peer: str, row: str) -> None:
        self._link, self._notes, self._peer, self._row = link, notes, peer, row

    def post_recv(self, into: torch.Tensor, tag: int) -> Pending:
        return TracedPending(self._link.post_recv(into, tag), self._noting(f"await {_kind(tag)} from {self._peer}", into))

    def isend(self, data: torch.Tensor, tag: int) -> Pending:
        begin_s = time.monotonic()
        pending = self._link.isend(data, tag)
        self._notes.add(self._row, f"send {_kind(tag)} to {self._peer}", begin_s, time.monotonic(), bytes=data.nbytes)
        return TracedPending(pending, self._noting(f"await {_kind(tag)} sent to {self._peer}", data))

    def close(self) -> None:
        self._link.close()

    def _noting(self, name: str, data: torch.Tensor) -> Callable[[float, float], None]:
        return lambda begin_s, end_s: self._notes.add(self._row, name, begin_s, end_s, bytes=data.nbytes)


class TracedPending:
    """A pending operation that notes how long it was waited for."""

    def __init__(self, pending: Pending, note: Callable[[float, float], None]) -> None:
        self._pending, self._note = pending, note

    def wait(self, timeout_s: float) -> None:
        begin_s = time.monotonic()
        self._pending.wait(timeout_s)
        end_s = time.monotonic()
        if end_s - begin_s >= SHORTEST_S:
            self._note(begin_s, end_s)


def _kind(tag: int) -> str:
    return KIND_NAMES[tag % KINDS]
