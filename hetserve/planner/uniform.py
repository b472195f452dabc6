"""The plainest plan: one group, all layers on one device, the fastest. What everything else is compared with."""

from __future__ import annotations

from hetserve.planner.case import open_case
from hetserve.planner.draft import Part, finish, no_room
from hetserve.planner.options import Options
from hetserve.planner.whole import fastest_device, whole_group
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Plan
from hetserve.spec.workload import Workload


def plan_uniform(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """One mixed group on the device with the fastest products (the first of equals).

    Raises:
        ResourceError: the device's budget does not hold the weights and one sequence of max_model_len tokens.
        UsageError: options that contradict each other. SpecError: a profile of something else.
    """
    case = open_case(cluster, model, workload, options)
    device = fastest_device(case)
    group = whole_group(case, device)
    if group is None:
        raise no_room(case, device, Part(case.whole, device, case.dtype))
    return finish(case, "uniform", [group], [f"{device}: everything, it has the fastest products"])
