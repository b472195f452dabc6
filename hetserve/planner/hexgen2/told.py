"""What is told of a search, and why devices are left out of what it found."""

from __future__ import annotations

from dataclasses import dataclass

from hetserve.planner.hexgen2.changes import Change, left_out, roles_in, take
from hetserve.planner.hexgen2.network import Network, Outcome
from hetserve.planner.hexgen2.search import Progress, Search
from hetserve.planner.hexgen2.site import PREFILL, Site
from hetserve.planner.hexgen2.strategy import Strategy

EVERY_TOO = 32  # devices left out up to which each is tried in every group, to say why it is


@dataclass(frozen=True)
class Found:
    """What the search says, before it becomes a plan."""

    site: Site
    network: Network
    outcome: Outcome
    progress: Progress
    strategies: tuple[Strategy, ...]  # of each group
    came_from: str  # which candidate it is

    def used(self) -> dict[int, float]:
        """group -> the share of what it could serve that it does."""
        return {number: flow / rate for number, (flow, rate) in enumerate(zip(self.outcome.flows, self.outcome.rates, strict=True))}


def search_told(search: Search, progress: Progress) -> str:
    """How the search went."""
    rule = f"prefill strategies by {'rate' if search.fastest_prefill else 'latency'}, others by rate"
    return (
        f"found by {search.method} search, seed {search.seed}, {progress.tried} layouts looked at; it began with {progress.start}, the best first "
        f"layout had {progress.first:.3g} requests/s; {rule}"
    )


def how_each(found: Found) -> list[str]:
    """Of each group: how long things take, and how many sequences it holds."""
    said = []
    for one, role in zip(found.strategies, found.outcome.layout.roles, strict=True):
        if role == PREFILL:
            said.append(f"{one.latency_s * 1e3:.3g} ms a prompt")
        else:
            said.append(f"{one.sequences:.0f} sequences at once, {one.latency_s * 1e3:.3g} ms a token")
    return said


def left_out_told(found: Found) -> list[str]:
    """Why devices are in no group: what the plan would make with each in the group that gains most by it."""
    site, network, outcome = found.site, found.network, found.outcome
    idle, roles = left_out(site, outcome.layout), roles_in(outcome.layout)
    if len(idle) > EVERY_TOO:
        return [f"{', '.join(site.names[device] for device in idle)}: left out; no layout looked at was better with them"]
    said = []
    for device in idle:
        layouts = [take(outcome.layout, number, device).apply(outcome.layout) for number in range(len(outcome.layout.groups))]
        alone = [Change((), (((device,), role),)).apply(outcome.layout) for role in roles]
        rates = [network.total(layout, network.rates(layout)) for layout in layouts]
        best = max(range(len(rates)), key=lambda one: rates[one])
        by_itself = max(network.strategies.rate((device,), role) for role in roles) > 0
        lone = max(network.total(layout, network.rates(layout)) for layout in alone) if by_itself else 0.0
        where = f"group {best}" if rates[best] >= lone else "a group of its own"
        small = "" if by_itself else "; it does not hold the model alone"
        said.append(f"{site.names[device]}: left out: {max(rates[best], lone):.4g} requests/s with it in {where}, {outcome.total:.4g} without{small}")
    return said
