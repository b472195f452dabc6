"""The HexGen-2 planner: prefill and decode on different groups of unlike devices, requests routed along a maximum flow (papers/hexgen2.md).

Groups by graph partition, roles by the opposite cut, ranks, stages and layers by cost, the whole improved where the flow is stuck. What the paper
leaves open is chosen in the modules beside this one, each of which says so.
"""

from __future__ import annotations

from hetserve.errors import ResourceError
from hetserve.planner.case import MIB, Case, open_case
from hetserve.planner.draft import finish
from hetserve.planner.hexgen2.find import find, network_of
from hetserve.planner.hexgen2.into_plan import group_of
from hetserve.planner.hexgen2.network import Outcome
from hetserve.planner.hexgen2.search import Search
from hetserve.planner.hexgen2.told import Found, how_each, left_out_told
from hetserve.planner.options import Options
from hetserve.planner.told import bound_of, each_group, summary
from hetserve.planner.why import unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Flow, Group, Plan
from hetserve.spec.workload import Workload


def plan_hexgen2(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options, search: Search | None = None) -> Plan:
    """The layout with the largest maximum flow found, in requests per second at the load's mean lengths.

    Raises:
        ResourceError: no two disjoint groups hold the model and a sequence each. UsageError, SpecError: as plan_uniform.
    """
    search = search or Search()
    case = open_case(cluster, model, workload, options)
    found = find(network_of(case, search), search)
    if found is None:
        raise no_layout(case)
    groups, flow = groups_of(case, found), flow_of(found.outcome)
    said = summary(groups, found.outcome.total, found.outcome.cut, bound_of(case, mixed=False), found.came_from)
    said += each_group(groups, flow, found.used(), how_each(found))
    return finish(case, "hexgen2", groups, [*said, *left_out_told(found), *calm(case), *unmeasured(case)], flow=flow)


def groups_of(case: Case, found: Found) -> list[Group]:
    """Each with what passes through it."""
    each = zip(found.strategies, found.outcome.layout.roles, found.outcome.flows, strict=True)
    return [group_of(case, found.network, strategy, role, requests_per_s=rate) for strategy, role, rate in each]


def flow_of(outcome: Outcome) -> tuple[Flow, ...]:
    """Where each prefill group's requests go."""
    arcs = sorted(outcome.arcs.items())
    sent = {source: sum(rate for (one, _), rate in arcs if one == source) for (source, _), _ in arcs}
    return tuple(Flow(source, target, min(1.0, rate / sent[source])) for (source, target), rate in arcs)


def calm(case: Case) -> list[str]:
    """What the search does not look at."""
    measured = case.options.profile is not None and case.options.profile.contention
    return ["how devices slow each other was measured and is not counted"] if measured else []


def no_layout(case: Case) -> ResourceError:
    """Why there is no plan."""
    budgets = sum(device.memory_bytes for device in case.cluster.devices) / MIB
    weights = case.model.weight_bytes(case.dtype) / MIB
    name, count = case.model.name, len(case.cluster.devices)
    return ResourceError(
        f"cluster {case.cluster.name!r} has no room for {name} twice, once for prompts and once for decoding: its {count} devices have "
        f"{budgets:,.0f} MiB together, the weights alone are {weights:,.0f} MiB, and every group needs workspace and room for a sequence",
        "give devices more memory in the cluster file, add some, or take a smaller model or a system with mixed groups",
    )
