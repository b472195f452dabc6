"""Groups of like devices: tensor parallelism inside nodes, pipelines over what is left, and as many replicas as there are devices for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hetserve.planner.case import Case
from hetserve.planner.kinds import Ranks, degrees, rank_sets
from hetserve.planner.pipeline import pipeline
from hetserve.spec.plan import Group

Way = tuple[Group, ...]  # replicas on different devices, each rated as if it were alone


def ways(case: Case, devices: Sequence[str], role: str = "mixed") -> Iterator[Way]:
    """Every number of ranks with every number of replicas that fits, of one kind of device; pipelines as long as the devices suffice."""
    for most in degrees(case, devices[0]):
        sets = rank_sets(case, devices, most)
        if most > max(map(len, sets)):
            return
        for depth in sorted({len(sets) // replicas for replicas in range(1, len(sets) + 1)}):
            replicas = [pipeline(case, one, role=role) for one in _replicas(sets, depth)]
            fitting = tuple(one for one in replicas if one is not None)
            if fitting:
                yield fitting


def total(way: Way) -> float:
    """Requests per second of all replicas."""
    return sum(one.requests_per_s for one in way)


def best(case: Case, devices: Sequence[str], role: str = "mixed") -> Way | None:
    """The way with the highest rate, the fewest devices among equals; None: nothing fits."""
    return max(ways(case, devices, role), key=lambda way: (total(way), -sum(len(stage.primary) for one in way for stage in one.stages)), default=None)


def _replicas(sets: Sequence[Ranks], depth: int) -> Iterator[Sequence[Ranks]]:
    """So many stages each, neighbours together."""
    for first in range(0, len(sets) - depth + 1, depth):
        yield sets[first : first + depth]
