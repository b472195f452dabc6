"""HexGen-2's groups whose decode groups enlist weak devices as attention workers: HexGen-2 deals phases out, Hetis attention.

Candidates: what HexGen-2 finds with all devices, and what it finds without those that Hetis' exclusion rule takes from the primaries (the slowest
ones that bring at most Delta / (1 + Delta) of all dense speed); each as it is and with devices in no group dealt to decode groups; then changes that
take primaries out of decode groups or turn groups, workers dealt anew. All are judged by one estimate (planner/enlist.py).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import finish
from hetserve.planner.enlist import Enlisting, Helped
from hetserve.planner.hexgen2.changes import left_out
from hetserve.planner.hexgen2.find import find, network_of
from hetserve.planner.hexgen2.network import Devices, Layout, Network
from hetserve.planner.hexgen2.plan import calm, flow_of, no_layout
from hetserve.planner.hexgen2.search import Search, effort_of
from hetserve.planner.hexgen2.site import Ranks
from hetserve.planner.hexgen2.told import Found
from hetserve.planner.options import Options
from hetserve.planner.told import bound_of, each_group, summary
from hetserve.planner.why import unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Online, Plan
from hetserve.spec.workload import Workload

SECOND = 3  # of the effort, what the search without the excluded devices may take: one part in so many


def plan_hexgen2_hetis(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options, search: Search | None = None) -> Plan:
    """The layout with the largest maximum flow found, decode groups rated with their attention workers.

    Raises:
        ResourceError: no two disjoint groups hold the model and a sequence each. UsageError, SpecError: as plan_uniform.
    """
    search = search or Search()
    case = open_case(cluster, model, workload, options)
    network = network_of(case, search)
    found = find(network, search)
    enlisting = Enlisting(case, found.network if found is not None else network)
    candidates = _candidates(enlisting, found, search)
    if not candidates:
        raise no_layout(case)
    best, came_from = max(candidates, key=lambda one: (one[0].outcome.total, -len(one[0].enlisted)))
    best = enlisting.finished(best)
    outcome = best.outcome
    each = zip(outcome.layout.groups, outcome.layout.roles, best.workers, outcome.flows, strict=True)
    groups = [enlisting.group(*one) for one in each]
    flow = flow_of(outcome)
    used = {number: passed / could for number, (passed, could) in enumerate(zip(outcome.flows, outcome.rates, strict=True))}
    said = summary(groups, outcome.total, outcome.cut, bound_of(case, mixed=False, elsewhere=True), came_from, elsewhere=True)
    said += [*each_group(groups, flow, used), *_roles_told(enlisting, best), *calm(case), *unmeasured(case)]
    return finish(case, "hexgen2+hetis", groups, said, Online(options.heads or "exact", options.theta), flow)


def excluded(network: Network, delta: float) -> Devices:
    """Devices that bring together at most delta / (1 + delta) of the dense speed of all, slowest first (papers/hetis.md 3.1, closed form)."""
    asked, kinds = network.strategies.asked, network.site.kinds.tolist()
    speed = [1 / max(asked.prefill(Ranks(kind, 1)).layer_s, 1e-12) for kind in kinds]
    order = sorted(range(len(kinds)), key=lambda one: (speed[one], -one))
    shares = np.cumsum([speed[one] for one in order]) / sum(speed)
    return tuple(one for one, share in zip(order, shares, strict=True) if share <= delta / (1 + delta))


def _candidates(enlisting: Enlisting, found: Found | None, search: Search) -> list[tuple[Helped, str]]:
    """Each with where it came from."""
    network, case = enlisting.network, enlisting.case
    bases = [("with all devices", found)]
    out = excluded(network, case.options.delta)
    if out:
        names = ", ".join(network.site.names[device] for device in sorted(out))
        bases.append(
            (
                f"without {names}, which bring less than Delta",
                _found_without(case, network, out, replace(search, effort=effort_of(search, len(network.site)) // SECOND)),
            )
        )
    candidates = []
    for what, base in bases:
        if base is not None:
            told = f"{base.came_from}; groups {what}"
            helped = enlisting.dealt(base.outcome.layout)
            candidates.append((enlisting.plain(base.outcome.layout), f"{told}, no attention workers"))
            candidates.append((helped, f"{told}, devices in no group dealt as attention workers"))
            candidates.append((enlisting.improved(helped), f"{told}, then primaries taken out and groups turned, attention workers dealt anew"))
    return candidates


def _found_without(case: Case, network: Network, out: Devices, search: Search) -> Found | None:
    """What the search finds if there were only the others, in the numbers of all."""
    names = [network.site.names[device] for device in out]
    kept = [number for number in range(len(network.site)) if number not in out]
    rest = replace(case.cluster, devices=tuple(device for device in case.cluster.devices if device.name not in names))
    found = find(network_of(replace(case, cluster=rest, costs=replace(case.costs, cluster=rest)), search), search)
    if found is None:
        return None
    groups = tuple(tuple(kept[device] for device in group) for group in found.outcome.layout.groups)
    return replace(found, outcome=replace(found.outcome, layout=Layout(groups, found.outcome.layout.roles)))


def _roles_told(enlisting: Enlisting, best: Helped) -> list[str]:
    """What attention workers bring, and why devices are in no group."""
    names, total = enlisting.network.site.names, best.outcome.total
    plain = enlisting.plain(best.layout).outcome
    said = []
    for number, workers in enumerate(best.workers):
        if workers:
            told = f"{best.outcome.rates[number]:.3g} requests/s with them, {plain.rates[number]:.3g} without"
            said.append(f"{', '.join(names[one] for one in workers)}: attention for group {number}: {told}")
    for device in left_out(enlisting.network.site, best.layout):
        if device not in best.enlisted:
            said.append(
                f"{names[device]}: left out: {enlisting.with_one(best, device):.4g} requests/s with it as attention worker, {total:.4g} without"
            )
    return said
