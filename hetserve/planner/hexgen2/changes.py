"""Changes to a layout: exchange, move or drop devices, turn, join or cut groups. Guided by where the maximum flow is stuck, or drawn at random.

Guided as in the paper: groups in the way (`Outcome.tight`) get devices of groups that have to spare, or exchange with them; nearest first. Chosen
here: which changes beside exchanges there are; devices of one kind and machine within a group stand for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np

from hetserve.planner.hexgen2.network import Devices, Layout, Outcome
from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL, ROLES, Site
from hetserve.solve.spectral import spectral_groups

OTHER = {PREFILL: DECODE, DECODE: PREFILL, MIXED: MIXED}  # what a group may become
CROWD = 24  # groups up to which a round looks at all changes that could help
PER_GROUP = 12  # partners that a group in the way is tried with, where there are more
Made = tuple[Devices, str]


@dataclass(frozen=True)
class Change:
    """Groups that go, and groups that come."""

    old: tuple[int, ...]
    new: tuple[Made, ...]

    def apply(self, layout: Layout) -> Layout:
        kept = [number for number in range(len(layout.groups)) if number not in self.old]
        groups = [layout.groups[number] for number in kept] + [devices for devices, _ in self.new]
        roles = [layout.roles[number] for number in kept] + [role for _, role in self.new]
        return Layout(tuple(groups), tuple(roles))

    def apart(self, other: Change) -> bool:
        """Whether both can be made."""
        if set(self.old) & set(other.old):
            return False
        mine, theirs = ({device for devices, _ in one.new for device in devices} for one in (self, other))
        return not mine & theirs

    def plus(self, other: Change) -> Change:
        """Both."""
        return Change(self.old + other.old, self.new + other.new)


NOTHING = Change((), ())


def roles_in(layout: Layout) -> tuple[str, ...]:
    """What a new group may be."""
    return (MIXED,) if MIXED in layout.roles else ROLES


def left_out(site: Site, layout: Layout) -> Devices:
    """Devices in no group."""
    used = {device for group in layout.groups for device in group}
    return tuple(device for device in range(len(site)) if device not in used)


def crowded(layout: Layout) -> bool:
    """Whether there are too many groups to look at all changes in one round."""
    return len(layout.groups) > CROWD


def guided(site: Site, outcome: Outcome, rng: np.random.Generator, most: int, anywhere: bool = False) -> Iterator[Change]:
    """Changes that could widen the bottleneck, at most so many: of all groups in the way, or of some drawn where they are too many.

    Args:
        anywhere: any group counts as in the way.
    """
    layout = outcome.layout
    tight = list(range(len(layout.groups))) if anywhere or not outcome.tight else sorted(outcome.tight)
    spare = [number for number in range(len(layout.groups)) if number not in tight]
    many = crowded(layout)
    if many:
        tight = sorted(rng.choice(tight, min(len(tight), PER_GROUP), replace=False).tolist())
        spare_turned = sorted(rng.choice(spare, min(len(spare), PER_GROUP), replace=False).tolist()) if spare else []
    else:
        spare_turned = spare
    idle = left_out(site, layout)
    return islice(_guided(site, layout, tight, spare, spare_turned, idle, rng, many), most)


def _guided(
    site: Site, layout: Layout, tight: list[int], spare: list[int], turned: list[int], idle: Devices, rng: np.random.Generator, many: bool
) -> Iterator[Change]:
    for number in turned:
        yield from turn(layout, number)
    for one in tight:
        partners = _nearest(site, layout, one, spare, rng) if many else spare
        for other in partners:
            yield from between(site, layout, other, one)
        for device in _kinds_of(site, idle)[:PER_GROUP]:
            yield take(layout, one, device)
        same = [other for other in (tight if not many else layout.of(layout.roles[one])) if other != one and layout.roles[other] == layout.roles[one]]
        for other in _nearest(site, layout, one, same, rng) if many else same:
            yield from between(site, layout, other, one)
            if one < other:
                yield join(layout, one, other, layout.roles[one])
        yield from drop(site, layout, one)
    for number in [*tight, *turned]:
        yield from cut(site, layout, number)
    for one, other in islice(combinations(turned, 2), PER_GROUP):
        yield join(layout, one, other, OTHER[layout.roles[one]])
    if idle:
        yield from (Change((), ((idle, role),)) for role in roles_in(layout))


def everything(site: Site, layout: Layout) -> Iterator[Change]:
    """All changes there are, wherever the bottleneck is: for small clusters."""
    numbers, idle = range(len(layout.groups)), left_out(site, layout)
    for number in numbers:
        yield from turn(layout, number)
        yield from cut(site, layout, number)
        yield from drop(site, layout, number)
        yield from (take(layout, number, device) for device in _kinds_of(site, idle))
        for other in numbers:
            if other != number:
                yield from between(site, layout, other, number)
            if other < number:
                yield from (join(layout, number, other, role) for role in roles_in(layout))


def drawn(site: Site, layout: Layout, rng: np.random.Generator, most: int) -> Iterator[Change]:
    """So many changes at random: without any guidance."""
    count = len(layout.groups)
    for _ in range(most):
        what, one = int(rng.integers(7)), int(rng.integers(count))
        others = [number for number in range(count) if number != one]
        other = int(rng.choice(others)) if others else one
        idle = left_out(site, layout)
        found: list[Change] = []
        if what <= 2 and others:
            found = list(between(site, layout, other, one))
        elif what == 3:
            found = list(turn(layout, one))
        elif what == 4:
            found = list(cut(site, layout, one))
        elif what == 5 and others:
            found = [join(layout, one, other, layout.roles[one])]
        elif idle:
            found = [take(layout, one, int(rng.choice(idle))), *(Change((), ((idle, role),)) for role in roles_in(layout))]
        else:
            found = list(drop(site, layout, one))
        if found:
            yield found[int(rng.integers(len(found)))]


def turn(layout: Layout, number: int) -> Iterator[Change]:
    """A group takes the other role, if there is one."""
    role = layout.roles[number]
    if OTHER[role] != role:
        yield Change((number,), ((layout.groups[number], OTHER[role]),))


def between(site: Site, layout: Layout, giver: int, taker: int) -> Iterator[Change]:
    """A device goes from one group to another, or two are exchanged."""
    gives, takes = layout.groups[giver], layout.groups[taker]
    mine, theirs = (layout.roles[number] for number in (giver, taker))
    for device in _kinds_of(site, gives):
        rest, more = _without(gives, device), _with(takes, device)
        yield Change((giver, taker), ((more, theirs), *(((rest, mine),) if rest else ())))
        for back in _kinds_of(site, takes):
            if (site.kinds[back], site.nodes[back]) != (site.kinds[device], site.nodes[device]):
                yield Change((giver, taker), ((_with(rest, back), mine), (_without(more, back), theirs)))


def take(layout: Layout, number: int, device: int) -> Change:
    """A group gets a device that was left out."""
    return Change((number,), ((_with(layout.groups[number], device), layout.roles[number]),))


def drop(site: Site, layout: Layout, number: int) -> Iterator[Change]:
    """A group leaves a device out."""
    group = layout.groups[number]
    if len(group) > 1:
        yield from (Change((number,), ((_without(group, device), layout.roles[number]),)) for device in _kinds_of(site, group))


def cut(site: Site, layout: Layout, number: int) -> Iterator[Change]:
    """A group becomes two, in its role or one in each."""
    group, role = layout.groups[number], layout.roles[number]
    if len(group) < 2:
        return
    where = list(group)
    labels = spectral_groups(site.weights[np.ix_(where, where)], site.memory_bytes[where], 2)
    halves = [tuple(device for device, label in zip(group, labels, strict=True) if label == half) for half in (0, 1)]
    yield Change((number,), tuple((half, role) for half in halves))
    if OTHER[role] != role:
        yield Change((number,), ((halves[0], role), (halves[1], OTHER[role])))
        yield Change((number,), ((halves[0], OTHER[role]), (halves[1], role)))
    if len(group) > 2:
        for device in _kinds_of(site, group):
            yield from (Change((number,), ((_without(group, device), role), ((device,), alone))) for alone in roles_in(layout))


def join(layout: Layout, one: int, other: int, role: str) -> Change:
    """Two groups become one."""
    return Change((one, other), ((tuple(sorted(layout.groups[one] + layout.groups[other])), role),))


def _kinds_of(site: Site, devices: Sequence[int]) -> list[int]:
    """One device of each kind and machine."""
    return list({(int(site.kinds[device]), int(site.nodes[device])): device for device in devices}.values())


def _nearest(site: Site, layout: Layout, number: int, others: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Half of PER_GROUP the groups with the fastest links to this one, half drawn from the rest."""
    if len(others) <= PER_GROUP:
        return list(others)
    mine = site.weights[layout.groups[number][0]]
    ranked = sorted(others, key=lambda other: -mine[layout.groups[other][0]])
    near, far = ranked[: PER_GROUP // 2], ranked[PER_GROUP // 2 :]
    return near + rng.choice(far, min(len(far), PER_GROUP // 2), replace=False).tolist()


def _without(devices: Devices, device: int) -> Devices:
    return tuple(one for one in devices if one != device)


def _with(devices: Devices, device: int) -> Devices:
    return tuple(sorted((*devices, device)))
