"""A measuring process: `python -m hetserve.profile.child device|link`, its task as JSON on standard input.

Confined exactly as a worker of the device is. Prints a line TICK whenever some work is done, and in the end its samples as one line of JSON.
"""

from __future__ import annotations

import sys
import time
from typing import TypeVar

import msgspec

from hetserve.engine.process import confine
from hetserve.profile.tasks import DeviceSamples, DeviceTask, LinkSamples, LinkTask

TICK = "tick"
WEIGHTS = ("bfloat16", "float32")
UNKNOWN_CACHE_BYTES = 2**26
T = TypeVar("T", DeviceTask, LinkTask)


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


def read(kind: type[T]) -> T:
    """The task on standard input, this process confined to its device."""
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=kind)
    confine(task)  # type: ignore[arg-type]
    return task


def main(what: str) -> int:
    samples = measure_device(read(DeviceTask)) if what == "device" else measure_link(read(LinkTask))
    print(msgspec.json.encode(samples).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
