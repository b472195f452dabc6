"""Messages between two devices' processes over the links their workers would have: there and back, receives posted before anything is sent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median

import torch

from hetserve.engine.transport.gloo import GlooLinks
from hetserve.engine.transport.link import HEADS, Link, make_tag
from hetserve.profile.rounds import interleaved
from hetserve.profile.tasks import LinkTask

LOOPBACK = "127.0.0.1"
PLANE = "profile"
WAIT_S = 30.0


def measure_link(task: LinkTask, tick: Callable[[], None]) -> tuple[float, ...]:
    """Seconds of each of the task's exchanges, there and back; nothing from the second device, which only answers."""
    link = GlooLinks(task.meeting, task.device, LOOPBACK).connect(task.peer, PLANE)
    bulk = set(task.effort.bulk_bytes)
    points = [(there, back, 1 if bulk & {there, back} else task.effort.pings) for there, back in task.exchanges]
    if task.first:
        return tuple(
            interleaved([_asking(link, *point) for point in points], task.effort.rounds, tick, math.inf)
        )  # the other end counts on every round
    for _ in range(task.effort.rounds):
        for point in points:
            _answer(link, *point)
    return ()


def _asking(link: Link, there: int, back: int, repeats: int) -> Callable[[], float]:
    out, into = torch.zeros(there, dtype=torch.uint8), torch.zeros(back, dtype=torch.uint8)
    tag = make_tag(HEADS)

    def once() -> float:
        began_s = time.perf_counter()
        answer = link.post_recv(into, tag)
        link.isend(out, tag).wait(WAIT_S)
        answer.wait(WAIT_S)
        return time.perf_counter() - began_s

    return lambda: median(once() for _ in range(repeats))


def _answer(link: Link, there: int, back: int, repeats: int) -> None:
    into, out = torch.zeros(there, dtype=torch.uint8), torch.zeros(back, dtype=torch.uint8)
    tag = make_tag(HEADS)
    question = link.post_recv(into, tag)
    for left in reversed(range(repeats)):
        question.wait(WAIT_S)
        if left:
            question = link.post_recv(into, tag)
        link.isend(out, tag).wait(WAIT_S)
