"""What a plan says to people, whoever planned: throughput and what limits it, the bound and the gap to it, where the plan came from, each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hetserve.planner.case import Case
from hetserve.planner.hexgen2.from_case import costs_of, demand_of, site_of
from hetserve.planner.hexgen2.limit import ATTENDED, RELAXED, upper_bound
from hetserve.spec.plan import Flow, Group

MOST = 8  # of what limits a plan, so many are named


def bound_of(case: Case, mixed: bool, elsewhere: bool = False) -> float:
    """Requests per second that no plan exceeds.

    Args:
        mixed: groups compute prompts in steps that read the weights anyway.
        elsewhere: decode attention may lie on devices that do nothing else.
    """
    return upper_bound(site_of(case), costs_of(case), demand_of(case), mixed, not elsewhere)


def gap(case: Case, total: float, mixed: bool, elsewhere: bool = False) -> list[str]:
    """The sentence about the bound; none where weights may be stored in several ways (on CPUs), of which the bound knows one."""
    if any(len(case.weights(name)) > 1 for name in case.names):
        return []
    return [_bounded(total, bound_of(case, mixed, elsewhere), elsewhere)]


def summary(groups: Sequence[Group], total: float, cut: Sequence[str], bound: float, came_from: str, elsewhere: bool = False) -> list[str]:
    """The whole plan in three sentences.

    Args:
        total: requests per second.
        cut: what limits it, as in `hexgen2.network.Outcome`.
        bound: requests per second that no plan exceeds.
        came_from: which of the candidates the plan was.
        elsewhere: as in `bound_of`.
    """
    named = [_named(groups, one) for one in cut[:MOST]]
    more = f" and {len(cut) - MOST} more" if len(cut) > MOST else ""
    return [
        f"predicted: {total:.4g} requests/s at the mean lengths; the bottleneck is {', '.join(named)}{more}",
        _bounded(total, bound, elsewhere),
        f"chosen: {came_from}",
    ]


def each_group(groups: Sequence[Group], flow: Sequence[Flow] = (), used: Mapping[int, float] | None = None, how: Sequence[str] = ()) -> list[str]:
    """A line for each group.

    Args:
        used: group -> the share of what it could serve that it does; all of it where nothing is said.
        how: more about each.
    """
    said = []
    for number, group in enumerate(groups):
        parts = [_stage(stage.layers, stage.primary) for stage in group.stages]
        workers = group.stages[0].attention
        if workers:
            parts.append(f"attention worker{'s' if len(workers) > 1 else ''} {', '.join(workers)}")
        full = f"{group.requests_per_s:.3g} requests/s"
        if used is not None:
            full += f", {used.get(number, 1.0):.0%} of what it could"
        to = [f"{one.share:.0%} of its requests to group {one.target}" for one in flow if one.source == number]
        said.append(f"group {number}, {group.role}: {'; '.join([*parts, full, *how[number : number + 1], *([', '.join(to)] if to else [])])}")
    return said


def _bounded(total: float, bound: float, elsewhere: bool) -> str:
    more = f"; {ATTENDED}" if elsewhere else ""
    return f"upper bound: {bound:.4g} requests/s, a gap of {1 - total / bound:.1%}; there {RELAXED}{more}"


def _stage(layers: tuple[int, int], primary: Sequence[str]) -> str:
    return f"{layers[1] - layers[0]} layers on {', '.join(primary)}{f' (TP {len(primary)})' if len(primary) > 1 else ''}"


def _named(groups: Sequence[Group], cut: str) -> str:
    """What limits, with the devices."""
    if cut.startswith(("out of ", "into ")):
        return f"the link {cut}, which all groups there share"
    if " to " in cut:
        return f"the links from {cut}"
    group = groups[int(cut.removeprefix("group "))]
    device, *more = [name for stage in group.stages for name in stage.primary]
    return f"{cut} ({group.role} on {device}{f' and {len(more)} more' if more else ''})"
