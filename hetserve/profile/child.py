"""A measuring process: `python -m hetserve.profile.child device|link|contention`, its task as a line of JSON on standard input.

Confined exactly as a worker of the device is. Prints a line TICK whenever some work is done, and in the end its samples as one line of JSON. One
for contention is told what to do line by line, and answers each with a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TypeVar

from hetserve.engine.process import confine
from hetserve.profile.tasks import ContentionTask, DeviceSamples, DeviceTask, LinkSamples, LinkTask, decode, encode

TICK = "tick"
WEIGHTS = ("bfloat16", "float32")
T = TypeVar("T", DeviceTask, LinkTask, ContentionTask)


def tick() -> None:
    print(TICK, flush=True)


def measure_device(task: DeviceTask) -> DeviceSamples:
    import torch

    from hetserve.profile.attention import AttentionBench
    from hetserve.profile.dense import measure_dense
    from hetserve.profile.site import open_site, read_bytes

    with torch.inference_mode():
        site = open_site(task.device, task.effort.most_requests)
        from_memory = read_bytes(task.device, site, task.effort.rounds, tick)
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        bench = AttentionBench(task, site)
        attention, chunks = bench.decode(tick), bench.prefill(tick)
        dense = tuple(measure_dense(task, weights, site, tick) for weights in WEIGHTS)
    cpu_share = (time.thread_time() - cpu_s) / (time.perf_counter() - began_s)
    return DeviceSamples(site.isa, from_memory, attention, chunks, dense, 1.0 if task.device.is_gpu else cpu_share)


def measure_link(task: LinkTask) -> LinkSamples:
    import torch

    from hetserve.profile import link
    from hetserve.profile.site import open_site

    with torch.inference_mode():
        return LinkSamples(link.measure_link(task, open_site(task.device, 0).at, tick))


def measure_contention(task: ContentionTask) -> None:
    import torch

    from hetserve.engine.slack import without_slack
    from hetserve.profile import contention
    from hetserve.profile.site import open_site

    with torch.inference_mode(), without_slack():
        contention.serve(task, open_site(task.device, task.effort.most_requests), sys.stdin.buffer, answer)


def answer(seconds: Sequence[float]) -> None:
    """One order's, as a line."""
    print(json.dumps(list(seconds)), flush=True)


def read(kind: type[T]) -> T:
    """The task on standard input, this process confined to its device."""
    task = decode(kind, sys.stdin.buffer.readline().decode())
    confine(task.device)  # type: ignore[arg-type]
    return task


def main(what: str) -> int:
    match what:
        case "device":
            print(encode(measure_device(read(DeviceTask))), flush=True)
        case "link":
            print(encode(measure_link(read(LinkTask))), flush=True)
        case "contention":
            measure_contention(read(ContentionTask))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
