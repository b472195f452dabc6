"""Layers over unlike stages: whole ones in a fixed order, cut so that the slowest stage is as fast as can be; and the same with layers cut anyhow."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def best_cuts(seconds: Floats) -> tuple[float, list[tuple[int, int]]] | None:
    """Contiguous ranges, one for each stage in order, at least a layer each, with the smallest largest time; exact, by dynamic programming.

    Args:
        seconds: [stages, layers + 1] what each stage takes with so many layers; inf where it cannot be.

    Returns: that time and [first, last) of each stage; None where nothing can be.
    """
    stages, layers = seconds.shape[0], seconds.shape[1] - 1
    ends, begins = np.indices((layers + 1, layers + 1))
    counts = np.clip(ends - begins, 0, layers)
    best, cut = np.where(np.arange(layers + 1) == 0, 0.0, inf), np.zeros((stages, layers + 1), int)
    for stage in range(stages):
        times = np.where(ends > begins, np.maximum(best, seconds[stage][counts]), inf)  # [end, begin]
        cut[stage] = times.argmin(axis=1)
        best = times.min(axis=1)
    if best[layers] == inf:
        return None
    ranges, end = [], layers
    for stage in reversed(range(stages)):
        begin = int(cut[stage, end])
        ranges.append((begin, end))
        end = begin
    return float(best[layers]), ranges[::-1]


def shared_s(layers: float, layer_s: Sequence[float], most: Sequence[float]) -> float:
    """The slowest stage's time if layers could be cut anyhow (Hetis 4.1, step 2: perfect scaling, no communication); inf: they do not fit.

    Args:
        layer_s: seconds a layer takes on each device; most: layers each has memory for.
    """
    if sum(most) < layers:
        return inf
    full: set[int] = set()
    while True:
        rest = layers - sum(most[one] for one in full)
        speed = sum(1 / layer_s[one] for one in range(len(layer_s)) if one not in full)
        time_s = rest / speed if speed else 0.0
        over = {one for one in range(len(layer_s)) if one not in full and time_s / layer_s[one] > most[one]}
        if not over:
            return max([time_s, *(most[one] * layer_s[one] for one in full)])
        full |= over
