"""HexGen's layouts on our engine: unlike stages in a pipeline, the slowest as fast as can be; or fewer devices, or replicas, if that promises more.

HexGen searches TP x PP x DP by a cost model; with one device a rank that is which devices form which pipelines. Larger layouts come later.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.estimate import together
from hetserve.planner.options import Options
from hetserve.planner.pipeline import pipeline
from hetserve.planner.whole import product_s, whole_group
from hetserve.planner.why import devices, expected, left_out, unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Group, Plan
from hetserve.spec.workload import Workload

EVERY_SUBSET = 6  # devices up to which every subset is tried; more: the fastest of each number


def plan_hexgen(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """The layout with the highest estimated rate: one pipeline over some of the devices, or a replica on each that holds one.

    Raises:
        ResourceError: nothing fits. UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    layouts = list(_layouts(case))
    if not layouts:
        raise no_layout(case)
    best = max(layouts, key=lambda layout: (expected(layout), -len(devices(layout))))
    notes = [f"chosen: {_told(best)}"]
    notes += [f"rejected: {_told(layout)}" for layout in sorted(layouts, key=expected, reverse=True) if layout is not best][:8]
    left = [device.name for device in cluster.devices if device.name not in devices(best)]
    notes += [f"{name}: {left_out(case, name, best, layouts)}" for name in left]
    return finish(case, "hexgen", best, notes + unmeasured(case))


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
        what = "replicas on " + ", ".join(group.stages[0].primary[0] for group in layout)
    else:
        parts = (f"{stage.primary[0]} layers {stage.layers[0]} to {stage.layers[1] - 1} ({stage.weights})" for stage in layout[0].stages)
        what = "; ".join(parts)
    return f"{what}: an estimated {expected(layout):.3g} requests/s"
