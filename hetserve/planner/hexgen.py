"""HexGen's layouts on our engine: replicas over unlike devices, each with ranks and stages of its own, the slowest stage as fast as can be.

Where there are GPUs, groups come from the search of planner/hexgen2, on groups that do both kinds of work: HexGen partitions devices by a genetic
search, here guided exchanges find more with as many layouts. Where there are few devices, or only CPUs, all of some simple layouts are candidates
too: one device a stage, weights as each device is fastest with. All are judged by the same estimate (planner/estimate.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.estimate import together
from hetserve.planner.hexgen2.find import find, network_of
from hetserve.planner.hexgen2.network import Mixed
from hetserve.planner.hexgen2.plan import groups_of
from hetserve.planner.hexgen2.search import SMALL, Search, bound
from hetserve.planner.options import Options
from hetserve.planner.pipeline import pipeline
from hetserve.planner.told import bound_of, each_group, summary
from hetserve.planner.whole import product_s, whole_group
from hetserve.planner.why import devices, expected, left_out, unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Group, Plan
from hetserve.spec.workload import Workload

MOST_TOLD = 8  # of layouts that were not chosen
EVERY_SUBSET = 6  # devices up to which every subset is tried; more: the fastest of each number, where there is no GPU

LESS = 4  # times less effort than HexGen-2's search takes on large clusters: groups that do both kinds of work have more ways to be laid out


def plan_hexgen(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options, search: Search | None = None) -> Plan:
    """The layout with the highest estimated rate.

    Raises:
        ResourceError: nothing fits. UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    candidates = list(_candidates(case, search or Search()))
    if not candidates:
        raise no_layout(case)
    best, came_from = max(candidates, key=lambda one: (expected(one[0]), -len(devices(one[0]))))
    notes = summary(best, expected(best), [f"group {number}" for number in range(len(best))], bound_of(case, mixed=True), came_from)
    notes += each_group(best)
    rejected = sorted((layout for layout, _ in candidates if layout is not best), key=expected, reverse=True)
    notes += [f"rejected: {_told(layout)}" for layout in rejected[:MOST_TOLD]]
    used, layouts = devices(best), [layout for layout, _ in candidates]
    notes += [f"{device.name}: {left_out(case, device.name, best, layouts)}" for device in cluster.devices if device.name not in used]
    return finish(case, "hexgen", best, notes + unmeasured(case))


def _candidates(case: Case, search: Search) -> Iterator[tuple[list[Group], str]]:
    """Layouts, each with where it came from."""
    gpus = any(device.is_gpu for device in case.cluster.devices)
    if not gpus or len(case.cluster.devices) <= EVERY_SUBSET:
        for layout in _layouts(case):
            yield layout, "the best of all layouts of one device a stage: one pipeline, or replicas"
    count = len(case.cluster.devices)
    less = search if search.effort or count <= SMALL else replace(search, effort=bound(count) // LESS)
    if gpus and (found := find(network_of(case, less, Mixed), less)) is not None:
        yield together(case, groups_of(case, found)), found.came_from


def _layouts(case: Case) -> Iterator[list[Group]]:
    names = sorted((device.name for device in case.cluster.devices), key=lambda name: product_s(case, (name,)))
    replicas = [group for name in names if (group := whole_group(case, (name,))) is not None]
    if replicas:
        yield together(case, replicas)
    for count in range(1, len(names) + 1):
        for chosen in combinations(names, count) if len(names) <= EVERY_SUBSET else [tuple(names[:count])]:
            group = whole_group(case, chosen) if count == 1 else pipeline(case, [(name,) for name in chosen])
            if group is not None and [group] != replicas:
                yield [group]


def _told(layout: list[Group]) -> str:
    if len(layout) > 1:
        what = "replicas on " + ", ".join(group.stages[0].primary[0] for group in layout[:MOST_TOLD])
    else:
        parts = (f"{', '.join(stage.primary)} layers {stage.layers[0]} to {stage.layers[1] - 1} ({stage.weights})" for stage in layout[0].stages)
        what = "; ".join(parts)
    return f"{what}: an estimated {expected(layout):.3g} requests/s"
