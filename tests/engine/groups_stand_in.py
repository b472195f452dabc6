"""A gloo group that behaves as a ProcessGroupNCCL does: the first call at one end waits for the first at the other, as they make the communicator;
then all is put on its stream, one operation after the other, each until both ends have come to it.

Works tell by `is_completed` that they are done, which gloo's never do.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from hetserve.engine.transport.gloo import GlooLink, GlooLinks

WAIT_S = 20


class StreamWork:
    def __init__(self, run: Callable[[], Any], limit_s: float) -> None:
        self._run = run
        self._limit_s = limit_s
        self._done = threading.Event()
        self._error: RuntimeError | None = None

    def run(self) -> None:
        try:
            self._run().wait(timedelta(seconds=self._limit_s))
        except RuntimeError as error:
            self._error = error
        self._done.set()

    def is_completed(self) -> bool:
        return self._done.is_set()

    def wait(self) -> None:
        assert self._done.is_set(), "a wait without a limit on what may never come"
        if self._error is not None:
            raise self._error


class StreamGroup:
    def __init__(self, connect: Callable[[], GlooLink], limit_s: float) -> None:
        self._connect = connect
        self._limit_s = limit_s
        self._group: Any = None
        self._works: queue.SimpleQueue[StreamWork | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, tensors: list[torch.Tensor], peer: int, tag: int) -> StreamWork:
        return self._add(lambda: self._group.send(tensors, peer, tag))

    def recv(self, tensors: list[torch.Tensor], peer: int, tag: int) -> StreamWork:
        return self._add(lambda: self._group.recv(tensors, peer, tag))

    def abort(self) -> None:
        """Ends the thread: one that still waits in gloo when the interpreter ends would abort the process."""
        self._works.put(None)
        self._thread.join()

    def _add(self, run: Callable[[], Any]) -> StreamWork:
        if self._group is None:
            self._group = self._connect()._group
        work = StreamWork(run, self._limit_s)
        self._works.put(work)
        return work

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            work.run()


class StreamGroups:
    """One worker's; a `MakeGroup`.

    Args:
        folder: where workers meet.
        shared: one group for everything between two workers, as a naive design would have it.
        limit_s: how long anything may wait for the other end.
    """

    def __init__(self, folder: str, device: str, shared: bool = False, limit_s: float = WAIT_S) -> None:
        self._links = GlooLinks(folder, device, "127.0.0.1")
        self._shared = shared
        self._limit_s = limit_s
        self.made: dict[str, StreamGroup] = {}

    def __call__(self, peer: str, name: str) -> StreamGroup:
        if self._shared:
            name = "all"
        if name not in self.made:
            self.made[name] = StreamGroup(lambda: self._links.connect(peer, f"stream|{name}"), self._limit_s)
        return self.made[name]
