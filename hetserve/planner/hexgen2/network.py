"""Groups as a flow network: how many requests a second pass through all of them, and what is in the way.

Of prefill and decode groups: source to every prefill group (in to out: its rate), on to every decode group (what the links carry), in to out, to
the sink; as in the paper, with capacities per second instead of per T. Mixed groups (HexGen's) have nothing between them.

Chosen here: what a machine sends, and what it receives, is shared by all transfers from it and to it. Groups over several machines send from each in
proportion to what lies there, which no flow network says; so where the maximum flow is more than a machine's link carries, a linear program over the
same arcs finds the most that is not. What stages of one group send each other goes over the same links, is little beside KV, and is not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, compress
from typing import ClassVar

import numpy as np

from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL, ROLES, Site
from hetserve.planner.hexgen2.strategy import Strategies
from hetserve.planner.hexgen2.transfer import Transfer, Wire, transfer
from hetserve.solve.maxflow import max_flow
from hetserve.solve.packing import most_packed

ENOUGH = 1 - 1e-9  # of a flow: as much
SOME = 1e-6  # of the flow: what a limit is worth that is in the way
Devices = tuple[int, ...]
Pair = tuple[int, int]  # a prefill group and a decode group
Transfers = dict[Pair, Transfer]


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
        arcs: -> requests per second, those with any.
        cut: what limits the total: "group 3", "group 0 to group 2" for a link, "out of NODE" or "into NODE" for what a machine sends or receives.
        tight: groups of the cut, those at either end of a link in it, and those that send over a machine's link in it or receive.
    """

    layout: Layout
    total: float
    rates: tuple[float, ...]
    flows: tuple[float, ...]
    arcs: dict[Pair, float]
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
    _transfers: dict[tuple[Devices, Devices], Transfer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size_bytes = self.strategies.demand.input_tokens * self.strategies.costs.kv_bytes * self.strategies.costs.layers
        off = ~np.eye(len(self.site), dtype=bool)
        slowest_s = (self.site.latency_s + size_bytes / self.site.bytes_per_s)[off].max(initial=0.0)
        self.links_carry = 1 / slowest_s if slowest_s else float("inf")  # any two groups: requests per second at least
        self.machines_carry = float(self.site.outside_bytes_per_s.min()) / max(size_bytes, 1e-12)  # every machine's link: of all requests together

    def rates(self, layout: Layout) -> list[float]:
        return [self.strategies.rate(group, role) for group, role in zip(layout.groups, layout.roles, strict=True)]

    def most(self, layout: Layout, rates: Sequence[float]) -> float:
        """Requests per second at most: as if no link limited anything."""
        sides = {role: sum(rates[number] for number in layout.of(role)) for role in self.roles}
        return min(sides.values())

    def total(self, layout: Layout, rates: Sequence[float], least: float = 0.0) -> float:
        """Requests per second, as `solve`, without saying how.

        Args:
            least: of interest; where the total is less, what is returned is less, too, but may be more than the total.
        """
        most = self.most(layout, rates)
        narrow = any(rate > self.links_carry for number, rate in enumerate(rates) if layout.roles[number] == PREFILL)
        return self.solve(layout, rates, least).total if narrow or most > self.machines_carry else most

    def solve(self, layout: Layout, rates: Sequence[float] | None = None, least: float = 0.0) -> Outcome:
        """The maximum flow.

        Args:
            least: of interest, as in `total`.
        """
        self.solved += 1
        rates = self.rates(layout) if rates is None else rates
        first, second = ([number for number in layout.of(role) if rates[number] > 0] for role in ROLES)
        count = len(layout.groups)
        if not first or not second:
            tight = frozenset(layout.of(PREFILL if not first else DECODE))
            return Outcome(layout, 0.0, tuple(rates), (0.0,) * count, {}, (), tight)
        transfers = {(p, d): self.transfer(layout.groups[p], layout.groups[d]) for p in first for d in second}
        flow = self._unshared(layout, rates, transfers)
        return flow if flow.total < ENOUGH * least or _fits(flow, transfers) else self._shared(flow, transfers)

    def _unshared(self, layout: Layout, rates: Sequence[float], transfers: Transfers) -> Outcome:
        """The maximum flow as if nobody else used a machine's link."""
        count, pairs = len(layout.groups), list(transfers)
        first, second = _ends(transfers)
        source, sink = 2 * count, 2 * count + 1  # group g: in 2g, out 2g + 1
        used = first + second
        tails = [source] * len(first) + [2 * g for g in used] + [2 * p + 1 for p, _ in pairs] + [2 * d + 1 for d in second]
        heads = [2 * g for g in first] + [2 * g + 1 for g in used] + [2 * d for _, d in pairs] + [sink] * len(second)
        room = [np.inf] * len(first) + [rates[g] for g in used] + [one.most for one in transfers.values()] + [np.inf] * len(second)
        flow = max_flow(tails, heads, room, source, sink)
        bounds = [0, *accumulate((len(first), len(used), len(pairs)))]
        groups, links = slice(bounds[1], bounds[2]), slice(bounds[2], bounds[3])
        through = dict(zip(used, flow.flows[groups].tolist(), strict=True))
        flows = tuple(through.get(g, 0.0) for g in range(count))
        arcs = {pair: rate for pair, rate in zip(pairs, flow.flows[links].tolist(), strict=True) if rate > 1e-9 * flow.total}
        told, stuck = self._cut(transfers, list(compress(used, flow.cut[groups])), list(compress(pairs, flow.cut[links])), [])
        return Outcome(layout, flow.total, tuple(rates), flows, arcs, told, stuck)

    def _shared(self, flow: Outcome, transfers: Transfers) -> Outcome:
        """The most that passes with machines' links shared, where that is less than the flow without."""
        pairs = list(transfers)
        used = [group for side in _ends(transfers) for group in side]
        wires = sorted({wire for one in transfers.values() for wire in one.shared_s})
        groups, links = {group: row for row, group in enumerate(used)}, {wire: row for row, wire in enumerate(wires, len(used))}
        uses = np.zeros((len(used) + len(wires), len(pairs)))  # of an arc that carries as much as passes in all
        for column, ((p, d), one) in enumerate(transfers.items()):
            for group in (p, d):
                uses[groups[group], column] = flow.total / flow.rates[group]
            for wire, seconds in one.shared_s.items():
                uses[links[wire], column] = flow.total * seconds
        most = [min(one.most / flow.total, 2.0) for one in transfers.values()]  # 2: an arc that could carry more than all is never full
        found = most_packed(uses, np.array(most))
        arcs = {pair: rate for pair, rate in zip(pairs, (found.amounts * flow.total).tolist(), strict=True) if rate > 1e-9 * flow.total}
        flows = tuple(sum(rate for pair, rate in arcs.items() if group in pair) for group in range(len(flow.flows)))
        dear = (found.room_prices > SOME).tolist()
        told, stuck = self._cut(
            transfers, list(compress(used, dear)), list(compress(pairs, found.own_prices > SOME)), list(compress(wires, dear[len(used) :]))
        )
        return Outcome(flow.layout, sum(arcs.values()), flow.rates, flows, arcs, told, stuck)

    def _cut(self, transfers: Transfers, groups: list[int], pairs: list[Pair], wires: list[Wire]) -> tuple[tuple[str, ...], frozenset[int]]:
        """What limits the total by name, and the groups that it goes through."""
        told = [f"group {group}" for group in groups] + [f"group {p} to group {d}" for p, d in pairs]
        told += [f"{way} {self.site.machines[machine]}" for way, machine in wires]
        over = {pair[way == "into"] for pair, one in transfers.items() for way, machine in wires if (way, machine) in one.shared_s}
        return tuple(told), frozenset({*groups, *(group for pair in pairs for group in pair), *over})

    def spread(self, outcome: Outcome) -> Outcome:
        """The same total with all groups of a role used to the same share, where links allow it: a maximum flow says nothing of who rests."""
        layout, rates = outcome.layout, outcome.rates
        used = {role: outcome.total / (sum(rates[number] for number in layout.of(role)) or 1.0) for role in ROLES}
        even = self.solve(layout, [rate * used[role] for rate, role in zip(rates, layout.roles, strict=True)])
        return replace(outcome, flows=even.flows, arcs=even.arcs) if even.total >= ENOUGH * outcome.total else outcome

    def transfer(self, prefill: Devices, decode: Devices) -> Transfer:
        """A mean prompt's KV from one group to another."""
        known = self._transfers.get((prefill, decode))
        if known is None:
            here, there = self.strategies.best(prefill, PREFILL), self.strategies.best(decode, DECODE)
            assert here is not None and there is not None
            layer_bytes = self.strategies.demand.input_tokens * self.strategies.costs.kv_bytes
            known = self._transfers[prefill, decode] = transfer(self.site, here, there, layer_bytes)
        return known


class Mixed(Network):
    """Groups that do both kinds of work: nothing goes from one to another, and what each can serve adds up."""

    roles = (MIXED,)

    def total(self, layout: Layout, rates: Sequence[float], least: float = 0.0) -> float:
        return self.most(layout, rates)

    def solve(self, layout: Layout, rates: Sequence[float] | None = None, least: float = 0.0) -> Outcome:
        """All groups are full, and none is in another's way."""
        rates = tuple(self.rates(layout) if rates is None else rates)
        told = tuple(f"group {number}" for number, rate in enumerate(rates) if rate > 0)
        return Outcome(layout, sum(rates), rates, rates, {}, told, frozenset())

    def spread(self, outcome: Outcome) -> Outcome:
        return outcome


def _ends(transfers: Transfers) -> tuple[list[int], list[int]]:
    """Groups that send, and groups that receive."""
    return list(dict.fromkeys(p for p, _ in transfers)), list(dict.fromkeys(d for _, d in transfers))


def _fits(flow: Outcome, transfers: Transfers) -> bool:
    """Whether every machine's link carries it."""
    busy: dict[Wire, float] = defaultdict(float)
    for pair, rate in flow.arcs.items():
        for wire, seconds in transfers[pair].shared_s.items():
            busy[wire] += rate * seconds
    return max(busy.values(), default=0.0) <= 1 / ENOUGH
