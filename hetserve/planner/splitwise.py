"""Splitwise's phases apart on our engine: prompts on the high-end devices, decoding on the others, their KV sent between them.

With GPUs either phase has as many groups as serve most, decode groups of one kind each or, as in Hetis' evaluation, pipelines over all kinds
(papers/hetis.md 7.1); which kinds are high-end the rate decides. If the others alone do not hold the model (8.2), some of the fastest decode with
them. Without a GPU there is one device for each phase.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import gcd

from hetserve.errors import UnsupportedError
from hetserve.planner.alike import Way, best, ways
from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import Part, finish, no_layout, no_room
from hetserve.planner.estimate import together
from hetserve.planner.kinds import DEGREES, by_kind, named, rank_sets
from hetserve.planner.options import Options
from hetserve.planner.phases import Phases, best_of, matched, notes
from hetserve.planner.pipeline import pipeline
from hetserve.planner.whole import product_s, whole_group
from hetserve.planner.why import alone, unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Flow, Plan
from hetserve.spec.workload import Workload


def plan_splitwise(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """Prefill groups on the kinds with the fastest products, decode groups on the others; both hold all weights.

    Raises:
        UnsupportedError: the cluster has one device. ResourceError: nothing but the prefill devices holds the weights and a sequence.
        UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    if len(cluster.devices) < 2:
        raise UnsupportedError(f"splitwise needs two devices, cluster {cluster.name!r} has one", "take another cluster, or --system uniform")
    if not any(device.is_gpu for device in cluster.devices):
        return _two_devices(case)
    first, *others = sorted(by_kind(case, case.names), key=lambda names: product_s(case, (names[0],)))
    layout = best_of(case, _layouts(case, [([first, *others[:count]], others[count:]) for count in range(len(others))]))
    divided = [f"{named(first)}: for either phase, other devices alone do not hold the model"] if layout is None and others else []
    layout = layout or best_of(case, _layouts(case, [([first[:at]], [first[at:], *others]) for at in range(1, len(first))]))
    if layout is None:
        raise no_layout(case)
    return finish(case, "splitwise", layout.used, [*divided, *notes(case, layout), *unmeasured(case)], flow=layout.flow)


def _layouts(case: Case, divided: Sequence[tuple[list[list[str]], list[list[str]]]]) -> Iterator[Phases]:
    """With these kinds for prompts and those for decoding."""
    for high, low in divided:
        decodes = list(_spanning(case, low))
        apart = tuple(group for names in low for group in best(case, names, "decode") or ())
        decodes += [apart] if apart else []
        for prefill in _prefills(case, high):
            yield from (matched(case, prefill, decode) for decode in decodes)


def _prefills(case: Case, kinds: list[list[str]]) -> Iterator[Way]:
    """Of the last kind every way, of those before it the best: kinds share no group."""
    before = tuple(group for names in kinds[:-1] for group in best(case, names, "prefill") or ())
    for way in ways(case, kinds[-1], "prefill"):
        yield (*before, *way)


def _spanning(case: Case, kinds: list[list[str]]) -> Iterator[Way]:
    """Decode groups that each have devices of every kind, as many of each, with at most so many ranks."""
    common = gcd(*map(len, kinds)) if len(kinds) > 1 else 0
    for count in (one for one in range(1, common + 1) if common % one == 0):
        for most in DEGREES:
            groups = []
            for number in range(count):
                parts = [names[number * len(names) // count : (number + 1) * len(names) // count] for names in kinds]
                groups.append(pipeline(case, [ranks for names in parts for ranks in rank_sets(case, names, most)], role="decode"))
            fitting = tuple(one for one in groups if one is not None)
            if fitting:
                yield fitting


def _two_devices(case: Case) -> Plan:
    """Prompts on the device with the fastest products, decoding on the one of the others that decodes most."""
    fast, *others = sorted(case.names, key=lambda name: product_s(case, (name,)))
    prefill = whole_group(case, (fast,), "prefill")
    if prefill is None:
        raise no_room(case, Part(case.whole, (fast,), case.dtype))
    decodes = [group for name in others if (group := whole_group(case, (name,), "decode")) is not None]
    if not decodes:
        raise no_room(case, Part(case.whole, (others[0],), case.dtype))
    prefill, decode = together(case, [prefill, max(decodes, key=lambda group: group.requests_per_s)])
    slow = decode.stages[0].primary[0]
    told = [
        f"{fast}: prefill, it has the fastest products; an estimated {prefill.requests_per_s:.3g} prompts/s{alone(case, prefill)}",
        f"{slow}: decode, an estimated {decode.requests_per_s:.3g} requests/s when full{alone(case, decode)}",
        *(f"{name}: left out, this version has one decode group" for name in others if name != slow),
    ]
    slower = min(prefill.requests_per_s, decode.requests_per_s)
    groups = [replace(group, requests_per_s=slower) for group in (prefill, decode)]
    return finish(case, "splitwise", groups, told + unmeasured(case), flow=(Flow(0, 1, 1.0),))
