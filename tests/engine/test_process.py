"""What a worker process tells the libraries it will load."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hetserve import _C
from hetserve.control.messages import NO_INTS
from hetserve.engine import accelerator, process, traced, worker
from hetserve.engine.process import ISA_CAPS, confine, failure, run
from hetserve.engine.transport import connect, gloo, nccl
from hetserve.engine.wire import FROM_WORKER, Failed, Ready, StepResult
from hetserve.errors import ResourceError
from hetserve.spec import load
from hetserve.spec.cluster import CPU, CUDA, EMULATED

CONFIG: Any = SimpleNamespace(cores=(0,), isa="", kind=CPU, stretch=None, meeting="", device="a", address="", index=0, model_folder="")
CUDA_SAID = "CUDA error: an illegal memory access was encountered\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process stays as it is."""
    monkeypatch.setattr(process, "confine", lambda config: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(_C, "set_threads", lambda count: None)


class Socket:
    """A socket as ZeroMQ wants it used: by one thread at a time. Notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []
        self._busy = threading.Lock()

    def setsockopt(self, option: int, value: int) -> None:
        return

    def poll(self, wait_ms: int) -> bool:
        return True

    def recv(self) -> bytes:
        return b"an order"

    def send(self, raw: bytes) -> None:
        assert self._busy.acquire(blocking=False), "two threads use the socket"
        time.sleep(0.02)
        self.sent.append(FROM_WORKER.decode(raw))
        self._busy.release()


@pytest.mark.parametrize(("kind", "isa"), [(CPU, ""), (CPU, "avx2"), (EMULATED, ""), (CUDA, "")])
def test_a_process_is_pinned_and_its_libraries_are_told(monkeypatch: pytest.MonkeyPatch, kind: str, isa: str) -> None:
    pinned, told = [], dict[str, str]()
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: pinned.append((process, cores)))
    monkeypatch.setattr(os, "environ", told)
    confine(SimpleNamespace(cores=(3, 5), isa=isa, kind=kind))  # type: ignore[arg-type]
    assert pinned == [(0, (3, 5))] and told["OMP_NUM_THREADS"] == "2" and told["OMP_PLACES"] == "{3},{5}"
    assert ISA_CAPS.get(isa, {}).items() <= told.items()
    assert (told.get("CUDA_DEVICE_MAX_CONNECTIONS") == "32") == (kind == CUDA), "communicators that share a queue of the GPU wait for each other"


def test_a_failure_is_told_while_no_other_thread_sends_and_then_the_worker_is_closed(monkeypatch: pytest.MonkeyPatch, free: None) -> None:
    results, closed = Socket(), list[int]()

    def failing(config: object, wanted: object, steps: object, report: Callable[[object], None], ends: ExitStack) -> None:
        thread = threading.Thread(target=lambda: [report(StepResult(number, 0, NO_INTS, (), 0.0, {})) for number in range(5)])

        def close() -> None:
            closed.append(len([one for one in results.sent if isinstance(one, Failed)]))
            thread.join()

        ends.callback(close)
        thread.start()
        raise ResourceError("too little memory", "a smaller model")

    monkeypatch.setattr(process, "serve_steps", failing)
    assert run(CONFIG, lambda: True, results, results) == ResourceError.exit_code  # type: ignore[arg-type]
    assert closed == [1], "once, and after the failure was told"
    assert len(results.sent) == 6 and Failed("ResourceError", "too little memory", "a smaller model") in results.sent


@pytest.mark.parametrize("by", ["the worker", "a thread of its own"])
def test_a_worker_that_fails_says_why_and_is_closed(monkeypatch: pytest.MonkeyPatch, free: None, by: str) -> None:
    results, closed = Socket(), list[str]()

    class Worker:
        kernels, weight_bytes, kv_bytes = "avx2", 0, 0

        def __init__(self, config: object, model: object, links: object, report: object, failed: Callable[[Exception], None], at: object) -> None:
            self._failed = failed

        def handle(self, order: object) -> None:
            if by == "the worker":
                raise RuntimeError(CUDA_SAID)
            thread = threading.Thread(target=self._failed, args=(RuntimeError(CUDA_SAID),))
            thread.start()
            thread.join()

        def close(self) -> None:
            closed.append("closed")

    modules = ((connect, "make_connect"), (gloo, "GlooLinks"), (nccl, "nccl_groups"), (accelerator, "make_accelerator"), (load, "load_model"))
    for module, name in modules:
        monkeypatch.setattr(module, name, lambda *_: SimpleNamespace(connect=None))
    monkeypatch.setattr(traced, "notes_of", lambda config: None)
    monkeypatch.setattr(worker, "Worker", Worker)
    monkeypatch.setattr(process, "TO_WORKER", SimpleNamespace(decode=lambda raw: raw))
    turns = iter([True, True, False])
    code = run(CONFIG, lambda: next(turns, False), results, results)  # type: ignore[arg-type]
    first, *failed = results.sent
    assert isinstance(first, Ready) and closed == ["closed"] and code == (by == "the worker")
    assert failed
    for one in failed:
        assert isinstance(one, Failed) and one.message.splitlines()[-1] == "RuntimeError: CUDA error: an illegal memory access was encountered"


def test_a_failure_is_named_once() -> None:
    try:
        raise ValueError("one line")
    except ValueError as error:
        said = failure(error)
    assert said.message.endswith("ValueError: one line") and said.message.count("ValueError: one line") == 1 and "Traceback" in said.message
