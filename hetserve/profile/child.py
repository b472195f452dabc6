"""A measuring process: `python -m hetserve.profile.child device|link|contention`, its task as a line of JSON on standard input.

Confined exactly as a worker of the device is. Prints a line TICK whenever some work is done, and in the end its samples as one line of JSON. One
for contention is told what to do line by line, and answers each with a line of JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from hetserve.engine.process import confine
from hetserve.profile.tasks import ContentionTask, DeviceSamples, DeviceTask, LinkSamples, LinkTask

TICK = "tick"
WEIGHTS = ("bfloat16", "float32")
UNKNOWN_CACHE_BYTES = 2**26
T = TypeVar("T", DeviceTask, LinkTask, ContentionTask)


def tick() -> None:
    print(TICK, flush=True)


def measure_device(task: DeviceTask) -> DeviceSamples:
    import torch

    from hetserve import _C, machine
    from hetserve.profile.attention import AttentionBench
    from hetserve.profile.dense import measure_dense

    torch.set_num_threads(len(task.cores))
    _C.set_threads(len(task.cores))
    torch.manual_seed(0)
    flush_bytes = 2 * machine.caches().get("l3", UNKNOWN_CACHE_BYTES)
    read_bytes = machine.read_bandwidth(task.cores, 2 * flush_bytes, task.effort.rounds)
    tick()
    began_s, cpu_s = time.perf_counter(), time.thread_time()
    with torch.inference_mode():
        bench = AttentionBench(task, flush_bytes)
        attention, chunks = bench.decode(tick), bench.prefill(tick)
        dense = tuple(measure_dense(task, weights, flush_bytes, tick) for weights in WEIGHTS)
    cpu_share = (time.thread_time() - cpu_s) / (time.perf_counter() - began_s)
    return DeviceSamples(_C.info()["isa"], read_bytes, attention, chunks, dense, cpu_share)


def measure_link(task: LinkTask) -> LinkSamples:
    import torch

    from hetserve.profile import link

    torch.set_num_threads(len(task.cores))
    return LinkSamples(link.measure_link(task, tick))


def measure_contention(task: ContentionTask) -> None:
    import torch

    from hetserve import _C, machine
    from hetserve.engine.slack import without_slack
    from hetserve.profile import contention

    torch.set_num_threads(len(task.cores))
    _C.set_threads(len(task.cores))
    torch.manual_seed(0)
    flush_bytes = 2 * machine.caches().get("l3", UNKNOWN_CACHE_BYTES)
    with torch.inference_mode(), without_slack():
        contention.serve(task, flush_bytes, sys.stdin.buffer, say)


def say(answer: DeviceSamples | LinkSamples | Sequence[float]) -> None:
    print(msgspec.json.encode(answer).decode(), flush=True)


def read(kind: type[T]) -> T:
    """The task on standard input, this process confined to its device."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    confine(task)  # type: ignore[arg-type]
    return task


def main(what: str) -> int:
    match what:
        case "device":
            say(measure_device(read(DeviceTask)))
        case "link":
            say(measure_link(read(LinkTask)))
        case "contention":
            measure_contention(read(ContentionTask))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
