"""Medians of short measurements, taken round by round over all points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

LEAST_ROUNDS = 3
SLOW_S = 0.2  # a point that takes longer is measured in the first LEAST_ROUNDS only, unless told otherwise

Measure = Callable[[], float]  # runs once, returns seconds


def interleaved(points: Sequence[Measure], rounds: int, tick: Callable[[], None], slow_s: float = SLOW_S) -> list[float]:
    """The median seconds of each point; `tick` is called after each round."""
    samples: list[list[float]] = [[] for _ in points]
    for number in range(rounds):
        for measure, taken in zip(points, samples, strict=True):
            if number < LEAST_ROUNDS or min(taken) < slow_s:
                taken.append(measure())
        tick()
    return [median(taken) for taken in samples]
