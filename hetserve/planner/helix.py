"""Helix's layer placement on our engine: which units hold which layers, so that the flow through them is largest (ASPLOS 2025).

Units are devices of one kind and machine that share layers, as Helix's nodes are; how many do is tried. An integer program places layers on up to
MOST_UNITS units; larger clusters are cut into parts with the same mixture of kinds, each placed by itself. Helix routes every request along a way of
its own; here a group of stages is what can be run, so ways share nothing, and each becomes a group. Within it layers are cut anew by the costs of
planner/hexgen2, which know fixed times and how many steps are under way. What no way uses is left out. The solver stops after a fixed amount of work,
not of time (solve/pipelines.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, inf

import numpy as np

from hetserve.planner.case import open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.estimate import together
from hetserve.planner.hexgen2.find import found_of
from hetserve.planner.hexgen2.from_case import costs_of, demand_of, site_of
from hetserve.planner.hexgen2.network import Devices, Layout, Mixed
from hetserve.planner.hexgen2.plan import calm, groups_of
from hetserve.planner.hexgen2.search import Progress
from hetserve.planner.hexgen2.site import MIXED, StageCosts
from hetserve.planner.hexgen2.strategy import Strategies, most_rate, ranks_of
from hetserve.planner.options import Options
from hetserve.planner.told import bound_of, each_group, summary
from hetserve.planner.why import devices, expected, unmeasured
from hetserve.solve.pipelines import Floats, Pipelines, best_pipelines
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Group, Plan
from hetserve.spec.workload import Workload

MOST_UNITS = 12  # of one integer program
MOST_BLOCKS = 20  # that the layers are cut into
EFFORT = 2.0  # of the solver for one program, in its own deterministic seconds: about as many of one core


@dataclass(frozen=True)
class Placed:
    """Ways through the units, by how many devices share layers at most."""

    ranks: int
    groups: tuple[Devices, ...]
    flow: float  # requests per second through the ways, as the program sees them
    bound: float  # no placement's is larger; of parts: of none that keeps to them


def plan_helix(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """The placement with the highest estimated rate of those with the largest flows, over sizes of units.

    Raises:
        ResourceError: nothing fits. UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    network = Mixed(site_of(case), Strategies(site_of(case), costs_of(case), demand_of(case)))
    candidates: list[tuple[list[Group], Placed]] = []
    for ranks in sorted({degree for kind in network.site.degrees for degree in kind}):
        placed = Placement(network, ranks).best()
        if placed.groups:
            layout = Layout(placed.groups, (MIXED,) * len(placed.groups))
            found = found_of(network, network.solve(layout), Progress(0), "")
            candidates.append((together(case, groups_of(case, found)), placed))
    if not candidates:
        raise no_layout(case)
    groups, placed = max(candidates, key=lambda one: expected(one[0]))
    came_from = f"the largest flow through units of at most {placed.ranks} device{'s' if placed.ranks > 1 else ''}: {placed.flow:.4g} requests/s"
    notes = summary(groups, expected(groups), [f"group {number}" for number in range(len(groups))], bound_of(case, mixed=True), came_from)
    notes += each_group(groups)
    for other, how in candidates:
        if how is not placed:
            notes.append(f"rejected: units of at most {how.ranks}: {len(how.groups)} groups, an estimated {expected(other):.3g} requests/s")
    notes += [f"{device.name}: left out: no way of the flow goes through it" for device in cluster.devices if device.name not in devices(groups)]
    return finish(case, "helix", groups, [*notes, *calm(case), *unmeasured(case)])


@dataclass
class Placement:
    """Units of at most so many devices, and ways through them."""

    network: Mixed
    most_ranks: int
    _known: dict[Hashable, Pipelines] = field(default_factory=dict)

    def best(self) -> Placed:
        """All parts of the cluster."""
        groups: list[Devices] = []
        flow = bound = 0.0
        for part in self._parts():
            found = self._placed(part)
            flow, bound = flow + found.total, bound + found.bound
            for way in found.ways:
                chosen = tuple(sorted(device for unit, _, _ in way for device in part[unit]))
                if self.network.strategies.rate(chosen, MIXED) > 0:
                    groups.append(chosen)
        return Placed(self.most_ranks, tuple(groups), flow, bound)

    def rates(self, unit: Devices) -> Floats:
        """[blocks + 1] requests per second that a unit lets through if it holds so many blocks; 0: it has no room for them and a sequence."""
        costs, demand, site, asked = self._costs, self.network.strategies.demand, self.network.site, self.network.strategies.asked
        ranks, rates = ranks_of(site, unit), np.zeros(self.blocks + 1)
        held = asked.bytes(ranks)
        kv = costs.kv_bytes / len(unit)
        for count in range(1, self.blocks + 1):
            layers = costs.layers * count / self.blocks
            used = held.fixed + layers * held.layer + (held.first + held.last) * (count == self.blocks)
            tokens = min(float(site.memory_bytes[unit[0]]) - used, float(site.kv_bytes[unit[0]])) / (kv * layers)
            waves = min(demand.waves, ceil(self.blocks / count))  # stages, if the others hold as many
            sequences = min(demand.most_sequences, floor(tokens / demand.held)) if tokens >= demand.longest else 0
            if sequences >= waves:
                batch = sequences / waves
                step = asked.decode(ranks, batch)
                added_s = batch / demand.output_tokens * asked.added_s(ranks)
                step_s = step.fixed_s + layers * (step.layer_s + added_s) + step.head_s * count / self.blocks
                rates[count] = most_rate(batch, step_s, demand)
        return rates

    @property
    def blocks(self) -> int:
        """Of layers, as many in each."""
        return self._costs.layers if self._costs.layers <= MOST_BLOCKS else MOST_BLOCKS

    def _placed(self, part: Sequence[Devices]) -> Pipelines:
        """Ways through the units of a part; parts that look alike are placed once."""
        site, demand = self.network.site, self.network.strategies.demand
        kinds = [(int(site.kinds[unit[0]]), len(unit)) for unit in part]
        first = [unit[0] for unit in part]
        links = site.link_kinds[np.ix_(first, first)]
        key = (tuple(kinds), links.tobytes())
        if key not in self._known:
            size_bytes = (demand.input_tokens + demand.output_tokens) * self._costs.row_bytes()
            seconds = size_bytes / site.bytes_per_s[np.ix_(first, first)]
            carried = np.where(np.eye(len(part), dtype=bool), inf, 1 / np.maximum(seconds, 1e-12))
            alike: dict[Hashable, int] = {}
            numbers = [alike.setdefault((kind, int(site.nodes[unit[0]])), len(alike)) for kind, unit in zip(kinds, part, strict=True)]
            self._known[key] = best_pipelines(np.array([self.rates(unit) for unit in part]), carried, numbers, EFFORT)
        return self._known[key]

    def _parts(self) -> list[list[Devices]]:
        """The units, dealt by kind over parts of at most MOST_UNITS."""
        units = list(self._units())
        count = ceil(len(units) / MOST_UNITS)
        kinds = self.network.site.kinds
        ordered = sorted(units, key=lambda unit: (int(kinds[unit[0]]), len(unit), unit))
        return [ordered[first::count] for first in range(count)]

    def _units(self) -> Iterator[Devices]:
        """Devices of one kind and machine, as many in each as may share layers."""
        site = self.network.site
        blocks: dict[tuple[int, int], list[int]] = {}
        for device in range(len(site)):
            blocks.setdefault((int(site.nodes[device]), int(site.kinds[device])), []).append(device)
        for (_, kind), members in blocks.items():
            left = members
            for size in sorted((one for one in site.degrees[kind] if one <= self.most_ranks), reverse=True):
                while len(left) >= size:
                    yield tuple(left[:size])
                    left = left[size:]

    @property
    def _costs(self) -> StageCosts:
        return self.network.strategies.costs
