"""DistServe's placement: prefill and decode instances of like devices, each phase with ranks, stages and replicas of its own (Zhong and others,
OSDI 2024, algorithm 1: instances of both phases on any nodes).

Chosen here: no objectives for latencies are given, so instead of goodput under them it is requests per second, and of placements that serve nearly as
much the one with the fastest prompts; instances are counted out so that both phases' rates match; each phase has one kind of device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from hetserve.errors import UnsupportedError
from hetserve.planner.alike import Way, total, ways
from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.kinds import by_kind
from hetserve.planner.options import Options
from hetserve.planner.phases import Phases, best_of, matched, notes
from hetserve.planner.why import unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Plan
from hetserve.spec.workload import Workload

SPLITS = 16  # ways to divide the devices of one kind between the phases, at most


def plan_distserve(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """The placement with the highest rate over kinds for either phase, or one kind divided between them.

    Raises:
        UnsupportedError: the cluster has one device. ResourceError: nothing fits twice. UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    if len(cluster.devices) < 2:
        raise UnsupportedError(f"distserve needs two devices, cluster {cluster.name!r} has one", "take another cluster, or --system uniform")
    best = best_of(case, _placements(case))
    if best is None:
        raise no_layout(case)
    return finish(case, "distserve", best.used, [*notes(case, best), *unmeasured(case)], flow=best.flow)


def _placements(case: Case) -> Iterator[Phases]:
    kinds = by_kind(case, case.names)
    for one, other in product(kinds, kinds):
        for first, second in _divided(one) if one is other else [(one, other)]:
            prefills, decodes = _instances(case, first, "prefill"), _instances(case, second, "decode")
            if decodes:
                decode = max(decodes, key=total)
                yield from (matched(case, prefill, decode) for prefill in prefills)


def _divided(names: Sequence[str]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    """The devices of one kind, the first for prefill."""
    for at in range(1, len(names), max(1, len(names) // SPLITS)):
        yield names[:at], names[at:]


def _instances(case: Case, names: Sequence[str], role: str) -> list[Way]:
    return list(ways(case, names, role))
