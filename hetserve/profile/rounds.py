"""Medians of short measurements, taken round by round over all points, and the clock they are taken with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

LEAST_ROUNDS = 3
SLOW_S = 0.2  # a point that takes longer is measured in the first LEAST_ROUNDS only, unless told otherwise

Measure = Callable[[], float]  # runs once, returns seconds
Clock = Callable[[], float]  # seconds since some moment


def own_clock(cores: Sequence[int]) -> Clock:
    """A CPU device's. On one core the CPU time of this thread, which other processes on that core do not lengthen; on several, where threads wait for
    each other, the time of day."""
    return time.thread_time if len(cores) == 1 else time.perf_counter


def interleaved(points: Sequence[Measure], rounds: int, tick: Callable[[], None], slow_s: float = SLOW_S) -> list[float]:
    """The median seconds of each point; `tick` is called after each round."""
    samples: list[list[float]] = [[] for _ in points]
    for number in range(rounds):
        for measure, taken in zip(points, samples, strict=True):
            if number < LEAST_ROUNDS or min(taken) < slow_s:
                taken.append(measure())
        tick()
    return [median(taken) for taken in samples]
