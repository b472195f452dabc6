"""Layers over stages whose time grows linearly with their layers: the cut with the shortest cycle, and shares of devices between two kinds of
work."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, inf

ROUNDS = 40  # of bisection; it ends earlier when nothing is left between the bounds
CLOSE = 1e-4  # relative
EXACT = 1e-12  # relative: two sums of the same numbers


def least_sum(layers: int, slopes: Sequence[float], most: Sequence[int]) -> list[int] | None:
    """How many layers each stage takes so that the sum of slope * layers is least, each at least one and at most `most`; None: impossible. Exact."""
    left = layers - len(slopes)
    if left < 0 or min(most) < 1:
        return None
    counts = [1] * len(slopes)
    for stage in sorted(range(len(slopes)), key=lambda one: (slopes[one], one)):
        more = min(left, most[stage] - 1)
        counts[stage] += more
        left -= more
    return counts if left == 0 else None


def shortest_cycle(layers: int, fixed_s: Sequence[float], slopes: Sequence[float], most: Sequence[int], waves: int) -> tuple[float, list[int]] | None:
    """Layers of each stage with the shortest time between two batches of a pipeline: the larger of its slowest stage's and the sum over stages /
    waves.

    Args:
        fixed_s, slopes: a stage of n layers takes fixed_s + n * slope.
        most: layers that each stage has memory for.
        waves: batches on their way at once; 1: the sum, as many as stages: the slowest stage alone.

    Returns: that time and the layers; None: they do not fit. Of cuts with that time the one with the least sum. With as many waves as stages it is
    exact, with fewer off the best by at most a few times CLOSE.
    """
    counts = least_sum(layers, slopes, most)
    if counts is None:
        return None
    if waves >= len(slopes):
        slowest_s = _least_slowest_s(layers, fixed_s, slopes, most) * (1 + EXACT)
        room = [min(cap, floor((slowest_s - one) / slope)) if slope > 0 else cap for one, slope, cap in zip(fixed_s, slopes, most, strict=True)]
        counts = least_sum(layers, slopes, room) or counts
        return cycle_s(counts, fixed_s, slopes, waves), counts
    best = (cycle_s(counts, fixed_s, slopes, waves), counts)
    low = max([sum(fixed_s) / waves, *(one + slope for one, slope in zip(fixed_s, slopes, strict=True))])
    low, high = max(low, _sum_s(counts, fixed_s, slopes) / waves), best[0]
    for _ in range(ROUNDS):
        if high - low <= CLOSE * high:
            break
        middle = (low + high) / 2
        room = [min(cap, floor((middle - one) / slope)) if slope > 0 else cap for one, slope, cap in zip(fixed_s, slopes, most, strict=True)]
        counts = least_sum(layers, slopes, room)
        if counts is None:
            low = middle
            continue
        found_s = cycle_s(counts, fixed_s, slopes, waves)
        if found_s < best[0]:
            best = (found_s, counts)
        if _sum_s(counts, fixed_s, slopes) / waves > middle:
            low = middle
        else:
            high = min(middle, found_s)
    return best


def _least_slowest_s(layers: int, fixed_s: Sequence[float], slopes: Sequence[float], most: Sequence[int]) -> float:
    """The slowest stage's time in the cut where it is least; exact. There is one that fits.

    Begins with the level to which stages would fill up if layers could be divided, and gives or takes single layers where that costs least.
    """
    stages, rest, level_s = list(range(len(slopes))), layers, 0.0
    counts = list(most)
    while stages:
        speed = sum(1 / max(slopes[one], 1e-15) for one in stages)
        level_s = (rest + sum(fixed_s[one] / max(slopes[one], 1e-15) for one in stages)) / speed
        full = [one for one in stages if fixed_s[one] + slopes[one] * most[one] <= level_s]
        if not full:
            break
        rest -= sum(most[one] for one in full)
        stages = [one for one in stages if one not in full]
    for one in stages:
        counts[one] = max(1, floor((level_s - fixed_s[one]) / max(slopes[one], 1e-15)))
    left = layers - sum(counts)
    for _ in range(left):
        one = min((one for one in stages if counts[one] < most[one]), key=lambda one: fixed_s[one] + slopes[one] * (counts[one] + 1))
        counts[one] += 1
    for _ in range(-left):
        one = max((one for one in range(len(counts)) if counts[one] > 1), key=lambda one: fixed_s[one] + slopes[one] * counts[one])
        counts[one] -= 1
    return max(one + slope * count for one, slope, count in zip(fixed_s, slopes, counts, strict=True))


def cycle_s(counts: Sequence[int], fixed_s: Sequence[float], slopes: Sequence[float], waves: int) -> float:
    """What `shortest_cycle` makes small, of given layers."""
    slowest_s = max(one + slope * count for one, slope, count in zip(fixed_s, slopes, counts, strict=True))
    return max(slowest_s, _sum_s(counts, fixed_s, slopes) / waves)


def shared_rate(first: Sequence[float], second: Sequence[float]) -> tuple[float, list[float]]:
    """The largest rate at which both of two works are done when each device may split its time between them; exact.

    Args:
        first, second: [devices] what each does a second of either if it does nothing else; at least 0.

    Returns: that rate, and the share of each device's time that goes to the first work.
    """
    order = sorted(range(len(first)), key=lambda one: (-first[one] / second[one] if second[one] else -inf, one))
    shares = [0.0] * len(first)
    done, rest = 0.0, float(sum(second))
    for device in order:
        if done + first[device] >= rest - second[device]:
            both = first[device] + second[device]
            shares[device] = min(1.0, max(0.0, (rest - done) / both)) if both else 0.0
            return min(done + shares[device] * first[device], rest - shares[device] * second[device]), shares
        done, rest, shares[device] = done + first[device], rest - second[device], 1.0
    return min(done, rest), shares


def _sum_s(counts: Sequence[int], fixed_s: Sequence[float], slopes: Sequence[float]) -> float:
    return sum(one + slope * count for one, slope, count in zip(fixed_s, slopes, counts, strict=True))
