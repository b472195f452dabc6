"""Attention workers for decode groups: which devices help which group, and what the groups make with them.

A decode group's rate, with workers or without, is planner/estimate.py's: dense work on the primaries, attention dealt over all that hold KV. Chosen
here: devices are dealt one by one, the one with most room for KV first, each to the group where the flow grows most by it, and stay out where it
does not grow by PAYS of what the group makes. A worker serves all stages of one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hetserve.planner.case import Case
from hetserve.planner.estimate import rate
from hetserve.planner.hexgen2.changes import PER_GROUP, drop, left_out, turn
from hetserve.planner.hexgen2.find import in_order, some
from hetserve.planner.hexgen2.into_plan import group_of
from hetserve.planner.hexgen2.network import Devices, Layout, Network, Outcome
from hetserve.planner.hexgen2.site import DECODE
from hetserve.spec.plan import PAGE_TOKENS, Group

PAYS = 0.01  # of a group's rate
ONE_BY_ONE = 32  # devices up to which each is dealt by itself; more: those alike in one machine together
ROUNDS = 8  # of changes to the groups, at most
EFFORT = 2000  # groups with workers that are looked at


@dataclass(frozen=True)
class Helped:
    """A layout with its workers.

    Attributes:
        workers: of each group; only decode groups have any.
        outcome: what passes, at the rates that groups have with their workers.
    """

    workers: tuple[Devices, ...]
    outcome: Outcome

    @property
    def layout(self) -> Layout:
        return self.outcome.layout

    @property
    def enlisted(self) -> set[int]:
        return {device for workers in self.workers for device in workers}


@dataclass
class Enlisting:
    """Rates of groups with workers, each asked for once."""

    case: Case
    network: Network
    asked: int = 0  # groups with workers
    _known: dict[tuple[Devices, tuple[tuple[int, int], ...]], float] = field(default_factory=dict)
    _rooms: dict[int, int] = field(default_factory=dict)

    def plain(self, layout: Layout) -> Helped:
        """Without any."""
        none: tuple[Devices, ...] = ((),) * len(layout.groups)
        return Helped(none, self._outcome(layout, none))

    def dealt(self, layout: Layout) -> Helped:
        """Devices in no group, each where it helps most."""
        best = self.plain(layout)
        for block in self._blocks(left_out(self.network.site, layout)):
            found = max((self._with(best, number, block) for number in self._targets(best, block)), key=lambda one: one.outcome.total, default=best)
            gained = found.outcome.total - best.outcome.total
            where = [number for number in range(len(layout.groups)) if found.workers[number] != best.workers[number]]
            if where and gained > PAYS * best.outcome.rates[where[0]]:
                best = found
        return best

    def improved(self, best: Helped) -> Helped:
        """After changes that gain: primaries of decode groups become workers, groups take the other role."""
        for _ in range(ROUNDS):
            found = max((self.dealt(layout) for layout in self._changed(best.layout)), key=lambda one: one.outcome.total, default=best)
            if found.outcome.total <= best.outcome.total * (1 + PAYS / 10):
                break
            best = found
        return best

    def finished(self, helped: Helped) -> Helped:
        """Groups in order, those that do nothing dropped, the load spread."""
        kept = in_order(self.network, self.network.spread(helped.outcome))
        workers = tuple(helped.workers[number] for number in kept)
        outcome = self._outcome(some(helped.layout, kept), workers)
        return Helped(workers, self.network.spread(outcome))

    def group(self, devices: Devices, role: str, workers: Devices, requests_per_s: float = 0.0) -> Group:
        """As the plan has it."""
        strategy = self.network.strategies.best(devices, role)
        assert strategy is not None
        return group_of(self.case, self.network, strategy, role, workers, requests_per_s)

    def with_one(self, helped: Helped, device: int) -> float:
        """Requests per second at most with that device as one more worker."""
        return max((self._with(helped, number, (device,)).outcome.total for number in self._targets(helped, (device,))), default=0.0)

    def _with(self, helped: Helped, number: int, block: Devices) -> Helped:
        workers = tuple((*one, *block) if index == number else one for index, one in enumerate(helped.workers))
        return Helped(workers, self._outcome(helped.layout, workers))

    def _outcome(self, layout: Layout, workers: tuple[Devices, ...]) -> Outcome:
        each = zip(layout.groups, layout.roles, workers, strict=True)
        rates = [self._rate(group, others) if role == DECODE else self.network.strategies.rate(group, role) for group, role, others in each]
        return self.network.solve(layout, rates)

    def _rate(self, devices: Devices, workers: Devices) -> float:
        """Of a decode group; 0: it does not hold the model."""
        site = self.network.site
        key = (devices, tuple(sorted((int(site.kinds[one]), int(site.nodes[one])) for one in workers)))
        if key not in self._known:
            self.asked += 1
            fits = self.network.strategies.rate(devices, DECODE) > 0
            self._known[key] = rate(self.case, self.group(devices, DECODE, workers)) if fits else 0.0
        return self._known[key]

    def _changed(self, layout: Layout) -> Iterator[Layout]:
        for number in range(len(layout.groups)):
            changes = [*turn(layout, number), *(drop(self.network.site, layout, number) if layout.roles[number] == DECODE else ())]
            for change in changes:
                changed = change.apply(layout)
                if self.asked < EFFORT and min(self.network.rates(changed)) > 0:
                    yield changed

    def _targets(self, helped: Helped, block: Devices) -> list[int]:
        """Decode groups that could use the help: those with the fastest links where there are many. None where KV has no room on the device."""
        layout, weights = helped.layout, self.network.site.weights
        if self._room(block[0]) < self.case.model.kv_heads:
            return []
        decode = [number for number in layout.of(DECODE) if helped.outcome.rates[number] > 0]
        decode = [number for number in decode if number in helped.outcome.tight] or decode
        return sorted(decode, key=lambda number: -weights[block[0], layout.groups[number][0]])[:PER_GROUP]

    def _room(self, device: int) -> int:
        """Pages of all layers."""
        if device not in self._rooms:
            name = self.network.site.names[device]
            page = PAGE_TOKENS * self.case.model.kv_bytes_per_token(self.case.dtype) / self.case.model.kv_heads
            self._rooms[device] = int(self.case.kv_bytes(name, self.case.attention_room(name)) // page)
        return self._rooms[device]

    def _blocks(self, devices: Iterable[int]) -> list[Devices]:
        """What is dealt at once, most room first."""
        ordered = sorted(devices, key=lambda one: (-self._room(one), one))
        if len(ordered) <= ONE_BY_ONE:
            return [(one,) for one in ordered]
        site = self.network.site
        blocks: dict[tuple[int, int], list[int]] = {}
        for one in ordered:
            blocks.setdefault((int(site.kinds[one]), int(site.nodes[one])), []).append(one)
        return [tuple(one) for one in blocks.values()]
