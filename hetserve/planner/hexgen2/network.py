"""Groups as a flow network: how many requests a second pass through all of them, and what is in the way.

Of prefill and decode groups: source to every prefill group (in to out: its rate), on to every decode group (what the links carry), in to out, to
the sink; as in the paper, with capacities per second instead of per T. Mixed groups (HexGen's) have nothing between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import ClassVar

import numpy as np

from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL, ROLES, Site
from hetserve.planner.hexgen2.strategy import Strategies, Strategy
from hetserve.solve.maxflow import max_flow

ENOUGH = 1 - 1e-9  # of a flow: as much
Devices = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Groups of devices with a role each; those in none are left out."""

    groups: tuple[Devices, ...]
    roles: tuple[str, ...]

    def of(self, role: str) -> list[int]:
        """Which groups have that role."""
        return [number for number, one in enumerate(self.roles) if one == role]


@dataclass(frozen=True)
class Outcome:
    """What passes through a layout.

    Attributes:
        rates: [groups] requests per second each could serve.
        flows: [groups] requests per second each does.
        arcs: (prefill group, decode group) -> requests per second, those with any.
        cut: what limits the total: "group 3", or "group 0 to group 2" for a link.
        tight: groups of the cut, and those at either end of a link in it.
    """

    layout: Layout
    total: float
    rates: tuple[float, ...]
    flows: tuple[float, ...]
    arcs: dict[tuple[int, int], float]
    cut: tuple[str, ...]
    tight: frozenset[int]

    @property
    def surplus(self) -> float:
        """What all groups could serve, in the way or not."""
        return sum(self.rates)


@dataclass
class Network:
    """Rates, links and flows of layouts, each link asked for once.

    Attributes:
        roles: what groups there are.
    """

    roles: ClassVar[tuple[str, ...]] = ROLES

    site: Site
    strategies: Strategies
    solved: int = 0  # flows
    _links: dict[tuple[Devices, Devices], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size_bytes = self.strategies.demand.input_tokens * self.strategies.costs.kv_bytes * self.strategies.costs.layers
        off = ~np.eye(len(self.site), dtype=bool)
        slowest_s = (self.site.latency_s + size_bytes / self.site.bytes_per_s)[off].max(initial=0.0)
        self.links_carry = 1 / slowest_s if slowest_s else float("inf")  # any two groups: requests per second at least

    def rates(self, layout: Layout) -> list[float]:
        return [self.strategies.rate(group, role) for group, role in zip(layout.groups, layout.roles, strict=True)]

    def most(self, layout: Layout, rates: Sequence[float]) -> float:
        """Requests per second at most: as if no link limited anything."""
        sides = {role: sum(rates[number] for number in layout.of(role)) for role in self.roles}
        return min(sides.values())

    def total(self, layout: Layout, rates: Sequence[float]) -> float:
        """Requests per second, as `solve`, without saying how."""
        if all(rate <= self.links_carry for number, rate in enumerate(rates) if layout.roles[number] == PREFILL):
            return self.most(layout, rates)
        return self.solve(layout, rates).total

    def solve(self, layout: Layout, rates: Sequence[float] | None = None) -> Outcome:
        """The maximum flow."""
        self.solved += 1
        rates = self.rates(layout) if rates is None else rates
        first, second = ([number for number in layout.of(role) if rates[number] > 0] for role in (PREFILL, DECODE))
        count = len(layout.groups)
        if not first or not second:
            tight = frozenset(layout.of(PREFILL if not first else DECODE))
            return Outcome(layout, 0.0, tuple(rates), (0.0,) * count, {}, (), tight)
        source, sink = 2 * count, 2 * count + 1  # group g: in 2g, out 2g + 1
        pairs = [(p, d) for p in first for d in second]
        carried = [self.link(layout.groups[p], layout.groups[d]) for p, d in pairs]
        used = first + second
        tails = [source] * len(first) + [2 * g for g in used] + [2 * p + 1 for p, _ in pairs] + [2 * d + 1 for d in second]
        heads = [2 * g for g in first] + [2 * g + 1 for g in used] + [2 * d for _, d in pairs] + [sink] * len(second)
        room = [np.inf] * len(first) + [rates[g] for g in used] + carried + [np.inf] * len(second)
        flow = max_flow(tails, heads, room, source, sink)
        bounds = [0, *accumulate((len(first), len(used), len(pairs), len(second)))]
        through = dict(zip(used, flow.flows[bounds[1] : bounds[2]].tolist(), strict=True))
        moved = flow.flows[bounds[2] : bounds[3]].tolist()
        arcs = {pair: rate for pair, rate in zip(pairs, moved, strict=True) if rate > 1e-9 * flow.total}
        cut_groups = [g for g, crossing in zip(used, flow.cut[bounds[1] : bounds[2]], strict=True) if crossing]
        cut_pairs = [pair for pair, crossing in zip(pairs, flow.cut[bounds[2] : bounds[3]], strict=True) if crossing]
        stuck = {*cut_groups, *(g for pair in cut_pairs for g in pair)}
        told = [f"group {g}" for g in cut_groups] + [f"group {p} to group {d}" for p, d in cut_pairs]
        flows = tuple(through.get(g, 0.0) for g in range(count))
        return Outcome(layout, flow.total, tuple(rates), flows, arcs, tuple(told), frozenset(stuck))

    def spread(self, outcome: Outcome) -> Outcome:
        """The same total with all groups of a role used to the same share, where links allow it: a maximum flow says nothing of who rests."""
        layout, rates = outcome.layout, outcome.rates
        used = {role: outcome.total / (sum(rates[number] for number in layout.of(role)) or 1.0) for role in ROLES}
        even = self.solve(layout, [rate * used[role] for rate, role in zip(rates, layout.roles, strict=True)])
        return replace(outcome, flows=even.flows, arcs=even.arcs) if even.total >= ENOUGH * outcome.total else outcome

    def link(self, prefill: Devices, decode: Devices) -> float:
        """Requests per second whose KV the links between two groups carry."""
        known = self._links.get((prefill, decode))
        if known is None:
            here, there = self.strategies.best(prefill, PREFILL), self.strategies.best(decode, DECODE)
            assert here is not None and there is not None
            size_bytes = self.strategies.demand.input_tokens * self.strategies.costs.kv_bytes
            known = self._links[prefill, decode] = 1 / max(transfer_s(self.site, here, there, size_bytes), 1e-12)
        return known


class Mixed(Network):
    """Groups that do both kinds of work: nothing goes from one to another, and what each can serve adds up."""

    roles = (MIXED,)

    def total(self, layout: Layout, rates: Sequence[float]) -> float:
        return self.most(layout, rates)

    def solve(self, layout: Layout, rates: Sequence[float] | None = None) -> Outcome:
        """All groups are full, and none is in another's way."""
        rates = tuple(self.rates(layout) if rates is None else rates)
        told = tuple(f"group {number}" for number, rate in enumerate(rates) if rate > 0)
        return Outcome(layout, sum(rates), rates, rates, {}, told, frozenset())

    def spread(self, outcome: Outcome) -> Outcome:
        return outcome


def transfer_s(site: Site, prefill: Strategy, decode: Strategy, layer_bytes: float) -> float:
    """Seconds until the KV of one request is over: each layer goes from the devices that computed it to those that will use it, heads to their ranks.

    The transfers share what they share: those between two machines the one link between them, those within a machine the link between two devices.
    The slowest of these links decides (notes 2.2; which transfers share is chosen here). Links between two machines that several pairs of groups use
    are counted for each pair as if it were alone.

    Args:
        layer_bytes: KV of one layer of a request, all heads.
    """
    loads: dict[tuple[bool, int, int], tuple[float, float]] = {}
    for source, target, layers in _overlaps(prefill, decode):
        whole = layers * layer_bytes
        for a, b, share in _shards(source, target):
            if a == b:
                continue
            far = site.nodes[a] != site.nodes[b]
            key = (True, int(site.nodes[a]), int(site.nodes[b])) if far else (False, a, b)
            latency_s, busy_s = loads.get(key, (0.0, 0.0))
            loads[key] = (max(latency_s, float(site.latency_s[a, b])), busy_s + whole * share / float(site.bytes_per_s[a, b]))
    return max((latency_s + busy_s for latency_s, busy_s in loads.values()), default=0.0)


def _overlaps(prefill: Strategy, decode: Strategy) -> list[tuple[Devices, Devices, int]]:
    """Stages of either that have layers in common, and how many."""
    found, i, j, at = [], 0, 0, 0
    end_i, end_j = prefill.layers[0], decode.layers[0]
    while True:
        until = min(end_i, end_j)
        found.append((prefill.stages[i], decode.stages[j], until - at))
        at = until
        if end_i == until:
            i += 1
            end_i += prefill.layers[i] if i < len(prefill.layers) else 0
        if end_j == until:
            j += 1
            end_j += decode.layers[j] if j < len(decode.layers) else 0
        if i == len(prefill.layers):
            return found


def _shards(source: Devices, target: Devices) -> list[tuple[int, int, float]]:
    """(from, to, share of the heads) of ranks that hold heads in common; both sides deal heads out in order and evenly."""
    if len(source) == len(target):
        return [(a, b, 1 / len(source)) for a, b in zip(source, target, strict=True)]
    found = []
    for i, a in enumerate(source):
        for j, b in enumerate(target):
            share = min((i + 1) / len(source), (j + 1) / len(target)) - max(i / len(source), j / len(target))
            if share > 1e-12:
                found.append((a, b, share))
    return found
