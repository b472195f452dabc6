"""A worker process: `python -m hetserve.engine.process STEPS RESULTS` with its WorkerConfig as JSON on standard input.

Pins itself and caps its libraries before torch is imported, loads its parts, then answers steps until told to stop (an empty message) or its
parent is gone. It prints nothing; failures travel as `Failed`.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, TypeAlias

from hetserve.engine.wire import FROM_WORKER, TO_WORKER, Failed, MoveResult, Ready, StepResult, WorkerConfig
from hetserve.errors import HetserveError, in_short
from hetserve.spec.cluster import CUDA

if TYPE_CHECKING:
    import zmq

Report: TypeAlias = Callable[[Ready | StepResult | MoveResult | Failed], None]

ORPHAN_CHECK_MS = 1000
ORPHANED = 7  # exit code of a worker whose engine went away while it was loading

# One name for "no better than this", spelled for every library that picks instructions by itself.
ISA_CAPS: dict[str, dict[str, str]] = {
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "HETSERVE_ISA": "avx2"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "HETSERVE_ISA": "avx512"},
    "avx512bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "HETSERVE_ISA": "avx512bf16"},
}


# About 0.2 ms of waiting at a barrier before a thread sleeps. libgomp's own default spins through whole scheduler ticks when anything else
# (the server, a client) wants one of the cores: measured, 770 ms for a decode step that takes 22 ms on a quiet machine, and 90 ms so.
SPIN_COUNT = 20_000

# Of the GPU, for a process's streams: as many as there can be, instead of 8. Each NCCL communicator has a stream of its own, and of two that share
# a queue one stands behind a receive that waits for the other's message.
QUEUES = "32"


def confine(config: WorkerConfig) -> None:
    """Pins this process to its cores, one compute thread to each, and caps its instruction sets. Before torch is imported.

    Threads that may wander end up on one core together as soon as a third thread runs, and then wait for each other tick by tick.
    """
    os.sched_setaffinity(0, config.cores)
    os.environ["OMP_NUM_THREADS"] = str(len(config.cores))
    os.environ["OMP_PLACES"] = ",".join(f"{{{core}}}" for core in config.cores)
    os.environ["OMP_PROC_BIND"] = "close"
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
    os.environ["THP_MEM_ALLOC_ENABLE"] = "1"  # torch's own: weights in huge pages, a tenth off a decode step
    os.environ.update(ISA_CAPS[config.isa] if config.isa else {})
    if config.kind == CUDA:
        os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = QUEUES


def serve_steps(config: WorkerConfig, wanted: Callable[[], bool], steps: zmq.Socket, report: Report, ends: ExitStack) -> None:
    """Loads its parts, says so, then carries out messages in the order they come, while it is `wanted`.

    Args:
        report: sends a message, from any thread.
        ends: gets what is to be done when no more messages are carried out, whatever the reason.
    """
    import torch

    from hetserve import _C
    from hetserve.engine.accelerator import make_accelerator
    from hetserve.engine.slack import without_slack
    from hetserve.engine.traced import notes_of, traced
    from hetserve.engine.transport.connect import make_connect
    from hetserve.engine.transport.gloo import GlooLinks
    from hetserve.engine.transport.nccl import nccl_groups
    from hetserve.engine.worker import Worker
    from hetserve.spec.load import load_model

    torch.set_num_threads(len(config.cores))
    _C.set_threads(len(config.cores))
    loaded = threading.Event()
    threading.Thread(target=_leave_if_unwanted, args=(wanted, loaded), name="orphan", daemon=True).start()
    with torch.inference_mode(), without_slack() if config.stretch else nullcontext():
        links = GlooLinks(config.meeting, config.device, config.address)
        notes = notes_of(config)
        at = make_accelerator(config.kind, config.index)
        connect = make_connect(config, at, links.connect, nccl_groups(config))
        connect = connect if notes is None else traced(connect, notes)
        worker = Worker(config, load_model(config.model_folder), connect, report, lambda error: report(failure(error)), at)
        ends.callback(worker.close)
        loaded.set()
        report(Ready(worker.kernels, len(config.cores), worker.weight_bytes, worker.kv_bytes))
        while wanted():
            if not steps.poll(ORPHAN_CHECK_MS):
                continue
            message = steps.recv()
            if not message:
                return
            order = TO_WORKER.decode(message)
            with nullcontext() if notes is None else notes.step(order):
                worker.handle(order)


def _leave_if_unwanted(wanted: Callable[[], bool], loaded: threading.Event) -> None:
    """Until it is loaded: a worker may wait minutes for a peer that never comes, and nobody be left to tell it so."""
    while not loaded.wait(ORPHAN_CHECK_MS / 1000):
        if not wanted():
            os._exit(ORPHANED)


def failure(error: Exception) -> Failed:
    """What the engine is told of an error; of a fault of ours the last line says what it is."""
    if isinstance(error, HetserveError):
        return Failed(type(error).__name__, error.message, error.hint)
    said, last = "".join(traceback.format_exception(error)).strip(), in_short(error)
    return Failed("", said if said.endswith(last) else f"{said}\n{last}", "")


def run(config: WorkerConfig, wanted: Callable[[], bool], steps: zmq.Socket, results: zmq.Socket) -> int:
    """Serves over connected sockets until the end, which is told as `Failed` if it is a failure. Returns the process's exit code."""
    import zmq

    confine(config)
    results.setsockopt(zmq.LINGER, 2000)
    steps.setsockopt(zmq.LINGER, 0)
    sending = threading.Lock()  # results of moves, and of a GPU's steps, come from other threads

    def report(message: Ready | StepResult | MoveResult | Failed) -> None:
        with sending:
            results.send(FROM_WORKER.encode(message))

    with ExitStack() as ends:  # no thread of the worker sends any more when the caller closes the sockets
        try:
            serve_steps(config, wanted, steps, report, ends)
            return 0
        except Exception as error:
            report(failure(error))  # before the worker closes its links: its peers would tell less
            return error.exit_code if isinstance(error, HetserveError) else 1


def main(steps_url: str, results_url: str) -> int:
    import msgspec
    import zmq

    parent = os.getppid()  # before the model is loaded: whoever started this may be gone by then
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerConfig)
    context = zmq.Context()
    with context.socket(zmq.PULL) as steps, context.socket(zmq.PUSH) as results:
        steps.connect(steps_url)
        results.connect(results_url)
        code = run(config, lambda: os.getppid() == parent, steps, results)
    context.term()
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
