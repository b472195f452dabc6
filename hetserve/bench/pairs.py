"""The comparison's arithmetic: which system runs when, and what interval the ratios of a few adjacent pairs allow. No clock, no process.

A pair is two runs next to each other in time on one request list; a slow spell of the machine meets both, so ratios are taken within pairs only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAIRS = 6
COVERAGE = 0.95


@dataclass(frozen=True)
class Turn:
    """One run: which system (0 or 1), in which pair, and whether the machine was the other's just before (so a warm-up is due)."""

    system: int
    pair: int
    switched: bool


def turns(pairs: int) -> list[Turn]:
    """AB BA AB ...: the order alternates, so neither system is always second, and half of the switches fall away."""
    order: list[Turn] = []
    for pair in range(pairs):
        for system in ((0, 1), (1, 0))[pair % 2]:
            order.append(Turn(system, pair, not order or order[-1].system != system))
    return order


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """A distribution-free interval for the median with at least 95 % coverage; None when there are too few values for one.

    The k-th smallest and k-th largest of n values hold the median with probability 1 - 2·P(Binomial(n, ½) < k) (sign test): for n = 6, k = 1,
    that is min to max at 96.9 %.
    """
    n, ordered = len(values), sorted(values)
    best = 0
    for k in range(1, n // 2 + 1):
        if 1 - 2 * sum(math.comb(n, j) for j in range(k)) / 2**n >= COVERAGE:
            best = k
    return (ordered[best - 1], ordered[-best]) if best else None


def ratios(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Ours / theirs for each metric both have in every pair: the median over pairs, its interval, and each pair's ratio.

    Args:
        ours, theirs: one summary a pair, same order.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in ours[0] if ours else ():
        known = [
            mine[name] / other[name] for mine, other in zip(ours, theirs, strict=True) if _positive(mine.get(name)) and _positive(other.get(name))
        ]
        if len(known) == len(ours):
            found[name] = ratio(known)
    return found


def ratio(values: Sequence[float]) -> dict[str, Any]:
    """Median and interval of the pairs' ratios, ready for JSON."""
    bounds = interval(values)
    said: dict[str, Any] = {"median": statistics.median(values), "ci95": list(bounds) if bounds else None, "pairs": list(values)}
    if bounds is None:
        said["why_no_ci95"] = f"{len(values)} pairs; 6 are needed"
    return said


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each number's median over a system's runs; what is not a number in every run is taken from the first."""
    return {
        name: statistics.median(run[name] for run in runs) if all(_number(run.get(name)) for run in runs) else value
        for name, value in runs[0].items()
    }


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0
