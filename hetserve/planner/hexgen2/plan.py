"""The HexGen-2 planner: prefill and decode on different groups of unlike devices, requests routed along a maximum flow (papers/hexgen2.md).

Groups by graph partition, roles by the opposite cut, ranks, stages and layers by cost, the whole improved where the flow is stuck. What the paper
leaves open is chosen in the modules beside this one, each of which says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from hetserve.cost.roofline import token_pages
from hetserve.errors import ResourceError, UsageError
from hetserve.planner.case import MIB, Case, open_case
from hetserve.planner.hexgen2.from_case import costs_of, demand_of, site_of
from hetserve.planner.hexgen2.genetic import evolve
from hetserve.planner.hexgen2.limit import upper_bound
from hetserve.planner.hexgen2.network import Layout, Network, Outcome
from hetserve.planner.hexgen2.search import METHODS, Search, improve
from hetserve.planner.hexgen2.site import ROLES
from hetserve.planner.hexgen2.strategy import Strategies, ranks_of
from hetserve.planner.hexgen2.told import Found, notes
from hetserve.planner.options import Options
from hetserve.planner.why import unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import MOST_PAGES, PAGE_TOKENS, Flow, Group, Limits, Plan, PlanModel, Pool, Stage, page_bytes
from hetserve.spec.workload import Workload


def plan_hexgen2(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options, search: Search | None = None) -> Plan:
    """The layout with the largest maximum flow found, in requests per second at the load's mean lengths.

    Raises:
        ResourceError: no two disjoint groups hold the model and a sequence each. UsageError, SpecError: as plan_uniform.
    """
    search = search or Search()
    case = open_case(cluster, model, workload, options)
    found = find(case, search)
    groups = tuple(_group(case, found, number) for number in range(len(found.strategies)))
    arcs = sorted(found.outcome.arcs.items())
    sent = {source: sum(rate for (one, _), rate in arcs if one == source) for (source, _), _ in arcs}
    flow = tuple(Flow(source, target, min(1.0, rate / sent[source])) for (source, target), rate in arcs)
    limits = Limits(_model_len(case, groups), options.max_seqs, options.max_step_tokens, options.steps_in_flight, options.max_waiting)
    calm = ["how devices slow each other was measured and is not counted"] if options.profile and options.profile.contention else []
    told = (*notes(found, search), *calm, *unmeasured(case))
    return Plan("hexgen2", PlanModel(model, case.dtype), cluster, limits, groups, flow, profile=options.profile, notes=told)


def find(case: Case, search: Search) -> Found:
    """The search alone.

    Raises:
        ResourceError: as plan_hexgen2. UsageError: there is no such method.
    """
    if search.method not in METHODS:
        raise UsageError(f"there is no search called {search.method!r}", f"known: {', '.join(METHODS)}")
    site, costs, demand = site_of(case), costs_of(case), demand_of(case)
    network = Network(site, Strategies(site, costs, demand, search.fastest_prefill))
    outcome, progress = (evolve if search.method == "genetic" else improve)(network, search)
    if outcome is None:
        raise _no_layout(case)
    outcome = network.spread(network.solve(_in_order(network.spread(outcome))))
    layout = outcome.layout
    best = [network.strategies.best(group, role) for group, role in zip(layout.groups, layout.roles, strict=True)]
    strategies = tuple(one for one in best if one is not None)
    assert len(strategies) == len(layout.groups)
    return Found(site, network, outcome, progress, upper_bound(site, costs, demand), strategies)


def _in_order(outcome: Outcome) -> Layout:
    """Groups that do something, prefill first, the fastest of each first."""
    layout = outcome.layout
    order = sorted(range(len(layout.groups)), key=lambda one: (ROLES.index(layout.roles[one]), -outcome.rates[one], layout.groups[one]))
    used = [one for one in order if outcome.flows[one] > 0]
    return Layout(tuple(layout.groups[one] for one in used), tuple(layout.roles[one] for one in used))


def _group(case: Case, found: Found, number: int) -> Group:
    strategy, stages, first = found.strategies[number], [], 0
    for devices, count in zip(strategy.stages, strategy.layers, strict=True):
        stages.append(_stage(case, found, devices, (first, first + count)))
        first += count
    return Group(found.outcome.layout.roles[number], tuple(stages), float(found.outcome.flows[number]))


def _stage(case: Case, found: Found, devices: Sequence[int], layers: tuple[int, int]) -> Stage:
    """Pools as large as the budgets allow; each rank's holds its share of the KV heads."""
    site, model, size_bytes = found.site, case.model, page_bytes(case.model, layers, case.dtype)
    held = found.network.strategies.asked.bytes(ranks_of(site, devices))
    used = held.fixed + (layers[1] - layers[0]) * held.layer + held.first * (layers[0] == 0) + held.last * (layers[1] == model.layers)
    heads = model.kv_heads // len(devices)
    usable = MOST_PAGES if case.options.kv_memory_bytes else case.options.max_seqs * token_pages(model.max_positions) * heads
    pools = []
    for device in devices:
        room = min(site.memory_bytes[device] - used, site.kv_bytes[device])
        pools.append(Pool(site.names[device], int(min(room // size_bytes, usable, MOST_PAGES)), size_bytes))
    names = tuple(site.names[device] for device in devices)
    return Stage(layers, names, (), tuple(pools), case.dtype)


def _model_len(case: Case, groups: Sequence[Group]) -> int:
    """The longest sequence: what the user asked for, or as much of the model's own limit as every group holds."""
    held = min(pool.pages * len(stage.primary) // case.model.kv_heads * PAGE_TOKENS for one in groups for stage in one.stages for pool in stage.pools)
    return case.options.max_model_len or max(1, min(case.model.max_positions, held))


def _no_layout(case: Case) -> ResourceError:
    """Why there is no plan."""
    budgets = sum(device.memory_bytes for device in case.cluster.devices) / MIB
    weights = case.model.weight_bytes(case.dtype) / MIB
    name, count = case.model.name, len(case.cluster.devices)
    return ResourceError(
        f"cluster {case.cluster.name!r} has no room for {name} twice, once for prompts and once for decoding: its {count} devices have "
        f"{budgets:,.0f} MiB together, the weights alone are {weights:,.0f} MiB, and every group needs workspace and room for a sequence",
        "give devices more memory in the cluster file, add some, or take a smaller model or a system with mixed groups",
    )
