"""What devices that slow each other cost a plan, in numbers and for people."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from hetserve.planner.case import Case
from hetserve.planner.estimate import held, stage_seconds, together
from hetserve.planner.kinds import named
from hetserve.spec.plan import Group, Stage
from hetserve.spec.profile import BUSY_SHARE, WORKS


def devices(groups: Sequence[Group]) -> set[str]:
    """All that take part in a layout."""
    return {pool.device for group in groups for stage in group.stages for pool in stage.pools}


def expected(groups: Sequence[Group]) -> float:
    """Requests per second of a layout, as its groups are rated."""
    return sum(group.requests_per_s for group in groups)


def told(case: Case, groups: Sequence[Group]) -> list[str]:
    """What is expected of a layout, and of its groups, like ones at once: their stages, and what keeps them from more."""
    like: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        stages = tuple((stage.layers, stage.weights, case.like(stage.primary[0]), len(stage.primary), len(stage.attention)) for stage in group.stages)
        like.setdefault((group.role, f"{group.requests_per_s:.3g}", stages), []).append(number)
    said = []
    for numbers in like.values():
        group = groups[numbers[0]]
        which = f"group {numbers[0]}" if len(numbers) == 1 else f"groups {', '.join(map(str, numbers))} alike, the first"
        parts = [stage_told(stage) for stage in group.stages]
        if group.stages[0].attention:
            parts.append(f"attention workers {named(group.stages[0].attention)}")
        if len(numbers) > 1:
            parts.append(f"the others on {named([name for name in case.names if name in devices([groups[one] for one in numbers[1:]])])}")
        said.append(f"{which}, {group.role}: {'; '.join(parts)}; {group.requests_per_s:.3g} requests/s when full; {limit(case, group)}")
    return said


def stage_told(stage: Stage) -> str:
    """Its layers and who computes them."""
    ranks = f" (TP {len(stage.primary)})" if len(stage.primary) > 1 else ""
    return f"layers {stage.layers[0]} to {stage.layers[1] - 1} on {named(stage.primary)}{ranks}"


def limit(case: Case, group: Group) -> str:
    """What keeps a group from more: its slowest stage, and for decoding what bounds the sequences that run at once."""
    seconds = stage_seconds(case, group)
    slowest = max(range(len(seconds)), key=lambda one: seconds[one])
    where = f"stage {slowest} on {named(group.stages[slowest].primary)}" if len(seconds) > 1 else "its one stage"
    if group.role == "prefill":
        return f"bottleneck: {where}, {seconds[slowest] * 1e3:.3g} ms a prompt"
    count = held(case, group)
    if count == case.workload.concurrency:
        why = "all that the load has"
    elif count == case.options.max_seqs:
        why = "all slots"
    else:
        why = "as many as KV memory holds"
    return f"bottleneck: {where}, {seconds[slowest] * 1e3:.3g} ms a step; {count:.0f} sequences at once, {why}"


def left_out(case: Case, device: str, chosen: Sequence[Group], tried: Iterable[Sequence[Group]], pays: float = 0.0) -> str:
    """What was expected of the best layout with the device, or, if it is contention that spoils it, of the one that would be best without.

    Args:
        pays: a layout with it must be expected to be so much better.
    """
    with_it = [groups for groups in tried if device in devices(groups)]
    if not with_it:
        return "left out: no layout with it fits"
    if not case.contended:
        return _short(max(with_it, key=expected), chosen, pays)
    calm = [expected(together(case.calm(), groups)) for groups in with_it]
    spoilt, rate = max(zip(with_it, calm, strict=True), key=lambda one: one[1])
    if rate > max(expected(spoilt), expected(chosen) * (1 + pays)):
        return f"{_short(spoilt, chosen, pays)}; {rate:.3g} if devices did not slow each other ({_worst(case, device, devices(spoilt))})"
    return _short(max(with_it, key=expected), chosen, pays)


def alone(case: Case, group: Group) -> str:
    """What is lost because other groups work at the same time; nothing is said of nothing."""
    (calm,) = together(case, [group])
    return f", {calm.requests_per_s:.3g} if it were alone" if calm.requests_per_s > group.requests_per_s * 1.001 else ""


def unmeasured(case: Case) -> list[str]:
    """Notes on what a profile does not know, or cannot be trusted in."""
    profile = case.options.profile
    if profile is None:
        return []
    busy = [one.name for one in profile.devices if one.cpu_share < BUSY_SHARE]
    notes = []
    if busy:
        notes.append(f"measured while {' and '.join(busy)} had other work: the profile may be far off; measure again when the machine is quiet")
    if not profile.contention and len(case.cluster.devices) > 1:
        notes.append("how devices slow each other was not measured, and counts as nothing: `hetserve profile` measures it")
    return notes


def _short(with_it: Sequence[Group], chosen: Sequence[Group], pays: float) -> str:
    said = f"left out: with it {expected(with_it):.3g} requests/s were expected, without {expected(chosen):.3g}"
    return f"{said}, and another device has to bring {pays:.0%}" if expected(with_it) > expected(chosen) else said


def _worst(case: Case, device: str, others: Iterable[str]) -> str:
    """The pair that slows each other most."""
    pairs = [(case.costs.contention(device, other), case.costs.contention(other, device)) for other in sorted(set(others) - {device})]
    here, there = max(pairs, key=lambda pair: max(*pair[0].factors.values(), *pair[1].factors.values()))
    each = (f"{work} {here.factor(work, work):.2f} and {there.factor(work, work):.2f}" for work in WORKS)
    return f"{device} and {here.other}: {', '.join(each)} times slower"
