"""Messages between two devices' processes over the links their workers would have, from one's memory to the other's: there and back, receives posted
before anything is sent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median

import torch

from hetserve.engine.accelerator import Accelerator
from hetserve.engine.transport.connect import make_connect
from hetserve.engine.transport.gloo import GlooLinks
from hetserve.engine.transport.link import HEADS, STEPS, Link, make_tag
from hetserve.engine.transport.nccl import nccl_groups
from hetserve.engine.wire import Gpu, GroupLayout, PoolLayout, StageLayout, WorkerConfig
from hetserve.profile.rounds import interleaved
from hetserve.profile.tasks import LinkTask
from hetserve.spec.plan import PAGE_TOKENS

WAIT_S = 30.0


def measure_link(task: LinkTask, at: Accelerator, tick: Callable[[], None]) -> tuple[float, ...]:
    """Seconds of each of the task's exchanges, there and back; nothing from the second device, which only answers."""
    link = connected(task, at)
    bulk = set(task.effort.bulk_bytes)
    points = [(there, back, 1 if bulk & {there, back} else task.effort.pings) for there, back in task.exchanges]
    if task.first:
        return tuple(
            interleaved([_asking(link, at, *point) for point in points], task.effort.rounds, tick, math.inf)
        )  # the other end counts on every round
    for _ in range(task.effort.rounds):
        for point in points:
            _answer(link, at, *point)
    return ()


def connected(task: LinkTask, at: Accelerator) -> Link:
    """The link between the two as workers of a group would have it, the first device its primary, the second an attention worker."""
    pair = (task.device, task.peer) if task.first else (task.peer, task.device)
    stage = StageLayout((0, 1), "", tuple(PoolLayout(one.name, 1) for one in pair), 0)
    config = WorkerConfig(
        device=task.device.name,
        cores=task.device.cores,
        isa=task.device.isa,
        model_folder="",
        dtype="",
        groups=(GroupLayout((stage,), False),),
        page_tokens=PAGE_TOKENS,
        max_seqs=1,
        max_model_len=1,
        meeting=task.meeting,
        kind=task.device.kind,
        index=task.device.index,
        gpus=tuple(Gpu(one.name, one.kind, one.index, one.node) for one in pair if one.is_gpu),
    )
    host = GlooLinks(task.meeting, task.device.name, config.address).connect
    return make_connect(config, at, host, nccl_groups(config))(task.peer.name, STEPS)


def _asking(link: Link, at: Accelerator, there: int, back: int, repeats: int) -> Callable[[], float]:
    out, into = (torch.zeros(size, dtype=torch.uint8, device=at.device) for size in (there, back))
    tag = make_tag(HEADS)

    def once() -> float:
        began_s = time.perf_counter()
        answer = link.post_recv(into, tag)
        link.isend(out, tag).wait(WAIT_S)
        answer.wait(WAIT_S)
        at.synchronize()  # what came is there when the device has it
        return time.perf_counter() - began_s

    return lambda: median(once() for _ in range(repeats))


def _answer(link: Link, at: Accelerator, there: int, back: int, repeats: int) -> None:
    into, out = (torch.zeros(size, dtype=torch.uint8, device=at.device) for size in (there, back))
    tag = make_tag(HEADS)
    question = link.post_recv(into, tag)
    for left in reversed(range(repeats)):
        question.wait(WAIT_S)
        at.synchronize()
        if left:
            question = link.post_recv(into, tag)
        link.isend(out, tag).wait(WAIT_S)
