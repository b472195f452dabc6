"""What a HexGen-2 plan says to people: throughput and bottleneck, the bound and the gap to it, each group, and why devices are left out."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.planner.hexgen2.changes import Change, left_out, take
from hetserve.planner.hexgen2.limit import RELAXED
from hetserve.planner.hexgen2.network import Network, Outcome
from hetserve.planner.hexgen2.search import Progress, Search
from hetserve.planner.hexgen2.site import DECODE, PREFILL, Site
from hetserve.planner.hexgen2.strategy import Strategy

EVERY_TOO = 32  # devices left out up to which each is tried in every group, to say why it is


@dataclass(frozen=True)
class Found:
    """What the search says, before it becomes a plan."""

    site: Site
    network: Network
    outcome: Outcome
    progress: Progress
    bound: float  # requests per second that nothing can exceed
    strategies: tuple[Strategy, ...]  # of each group


def notes(found: Found, search: Search) -> tuple[str, ...]:
    """A sentence or two each."""
    return (*_told(found, search), *_groups_told(found), *_left_out_told(found))


def _told(found: Found, search: Search) -> list[str]:
    """The whole plan in three sentences."""
    outcome, progress = found.outcome, found.progress
    cut = [_named(found, one) for one in outcome.cut]
    most = f"{', '.join(cut[:8])}{f' and {len(cut) - 8} more' if len(cut) > 8 else ''}"
    rule = "rate" if search.fastest_prefill else "latency"
    first = f"the best first layout had {progress.first:.3g}"
    return [
        f"predicted: {outcome.total:.4g} requests/s at the mean lengths; the bottleneck is {most}",
        f"upper bound: {found.bound:.4g} requests/s, a gap of {1 - outcome.total / found.bound:.1%}; there {RELAXED}",
        f"search: {search.method}, seed {search.seed}, {progress.tried} layouts looked at, began with {progress.start}; {first}; "
        f"prefill strategies by {rule}, decode by rate",
    ]


def _named(found: Found, cut: str) -> str:
    """What limits, with the devices."""
    first = int(cut.split(" to ")[0].removeprefix("group "))
    if " to " in cut:
        return f"the links from {cut}"
    device, *more = found.outcome.layout.groups[first]
    return f"{cut} ({found.outcome.layout.roles[first]} on {found.site.names[device]}{f' and {len(more)} more' if more else ''})"


def _groups_told(found: Found) -> list[str]:
    """A line for each group."""
    said = []
    outcome = found.outcome
    for number, (strategy, role) in enumerate(zip(found.strategies, outcome.layout.roles, strict=True)):
        parts = []
        for devices, count in zip(strategy.stages, strategy.layers, strict=True):
            names = ", ".join(found.site.names[device] for device in devices)
            parts.append(f"{count} layers on {names}{f' (TP {len(devices)})' if len(devices) > 1 else ''}")
        full = f"{outcome.rates[number]:.3g} requests/s, {outcome.flows[number] / outcome.rates[number]:.0%} used"
        if role == PREFILL:
            how = f"{strategy.latency_s * 1e3:.3g} ms a prompt"
        else:
            how = f"{strategy.sequences:.0f} sequences at once, {strategy.latency_s * 1e3:.3g} ms a token"
        to = [f"{rate / outcome.total:.0%} of all to group {target}" for (source, target), rate in sorted(outcome.arcs.items()) if source == number]
        said.append(f"group {number}, {role}: {'; '.join(parts)}; {full}; {how}{'; ' + ', '.join(to) if to else ''}")
    return said


def _left_out_told(found: Found) -> list[str]:
    """Why devices are in no group: what the plan would make with each in the group that gains most by it."""
    site, network, outcome = found.site, found.network, found.outcome
    idle = left_out(site, outcome.layout)
    if len(idle) > EVERY_TOO:
        return [f"{', '.join(site.names[device] for device in idle)}: left out; no layout looked at was better with them"]
    said = []
    for device in idle:
        layouts = [take(outcome.layout, number, device).apply(outcome.layout) for number in range(len(outcome.layout.groups))]
        alone = [Change((), (((device,), role),)).apply(outcome.layout) for role in (PREFILL, DECODE)]
        rates = [network.total(layout, network.rates(layout)) for layout in layouts]
        best = max(range(len(rates)), key=lambda one: rates[one])
        by_itself = max(network.strategies.rate((device,), role) for role in (PREFILL, DECODE)) > 0
        lone = max(network.total(layout, network.rates(layout)) for layout in alone) if by_itself else 0.0
        where = f"group {best}" if rates[best] >= lone else "a group of its own"
        small = "" if by_itself else "; it does not hold the model alone"
        said.append(f"{site.names[device]}: left out: {max(rates[best], lone):.4g} requests/s with it in {where}, {outcome.total:.4g} without{small}")
    return said
