"""A whole model on every device that holds it, requests routed by speed: what a practical user of unlike devices does."""

from __future__ import annotations

from hetserve.planner.case import open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.estimate import together
from hetserve.planner.options import Options
from hetserve.planner.told import gap
from hetserve.planner.whole import whole_group
from hetserve.planner.why import alone, devices, expected, unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Plan
from hetserve.spec.workload import Workload


def plan_replicas(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """A mixed group on each device with room for the weights and a sequence of at least a mean request.

    Raises:
        ResourceError: no device holds the model. UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    fitting = [group for device in cluster.devices if (group := whole_group(case, (device.name,))) is not None]
    if not fitting:
        raise no_layout(case)
    groups = together(case, fitting)
    notes = [f"{device.name}: left out, its budget does not hold the model" for device in cluster.devices if device.name not in devices(groups)]
    for group in groups:
        (stage,) = group.stages
        rate = f"an estimated {group.requests_per_s:.3g} requests/s when full{alone(case, group)}"
        notes.append(f"{stage.primary[0]}: a replica with {stage.weights} weights, {rate}")
    return finish(case, "replicas", groups, [*notes, *gap(case, expected(groups), mixed=True), *unmeasured(case)])
