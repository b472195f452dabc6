"""Layers over unlike stages: whole ones in a fixed order, cut so that the slowest stage is as fast as can be; and the same with layers cut anyhow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import numpy as np


def best_cuts(layers: int, stages: int, stage_s: Callable[[int, int, int], float]) -> tuple[float, list[tuple[int, int]]] | None:
    """Contiguous ranges, one for each stage in order, with the smallest largest time; exact, by dynamic programming.

    Args:
        stage_s: (stage, first layer, one past the last) -> seconds; inf where it cannot be.

    Returns: that time and [first, last) of each stage; None where nothing can be.
    """
    best = np.full((stages + 1, layers + 1), inf)  # [stages placed, layers placed]
    cut = np.zeros((stages + 1, layers + 1), int)
    best[0, 0] = 0.0
    for stage in range(stages):
        for end in range(stage + 1, layers - (stages - stage - 1) + 1):
            for begin in range(stage, end):
                if best[stage, begin] < best[stage + 1, end]:
                    time_s = max(best[stage, begin], stage_s(stage, begin, end))
                    if time_s < best[stage + 1, end]:
                        best[stage + 1, end], cut[stage + 1, end] = time_s, begin
    if best[stages, layers] == inf:
        return None
    ranges, end = [], layers
    for stage in range(stages, 0, -1):
        begin = int(cut[stage, end])
        ranges.append((begin, end))
        end = begin
    return float(best[stages, layers]), ranges[::-1]


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
