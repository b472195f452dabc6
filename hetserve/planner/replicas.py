"""A whole model on every device that holds it, requests routed by speed: what a practical user of unlike devices does."""

from __future__ import annotations

from hetserve.planner.case import open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.options import Options
from hetserve.planner.whole import whole_group
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
    groups, notes = [], []
    for device in cluster.devices:
        group = whole_group(case, device.name)
        if group is None:
            notes.append(f"{device.name}: left out, its budget does not hold the model")
            continue
        groups.append(group)
        stage = group.stages[0]
        notes.append(f"{device.name}: a replica with {stage.weights} weights, an estimated {group.requests_per_s:.3g} requests/s when full")
    if not groups:
        raise no_layout(case)
    return finish(case, "replicas", groups, notes)
