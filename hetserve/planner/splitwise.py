"""Splitwise's phases apart on our engine: prompts on one device, decoding on another, their KV sent between them."""

from __future__ import annotations

from dataclasses import replace

from hetserve.errors import UnsupportedError
from hetserve.planner.case import open_case
from hetserve.planner.draft import Part, finish, no_room
from hetserve.planner.estimate import together
from hetserve.planner.options import Options
from hetserve.planner.whole import product_s, whole_group
from hetserve.planner.why import alone, unmeasured
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Flow, Plan
from hetserve.spec.workload import Workload


def plan_splitwise(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """A prefill group on the device with the fastest products, a decode group on the one of the others that decodes most; both hold all weights.

    Raises:
        UnsupportedError: the cluster has one device. ResourceError: no second device holds the weights and a sequence.
        UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    if len(cluster.devices) < 2:
        raise UnsupportedError(f"splitwise needs two devices, cluster {cluster.name!r} has one", "take another cluster, or --system uniform")
    fast, *others = sorted((device.name for device in cluster.devices), key=lambda name: product_s(case, name))
    prefill = whole_group(case, fast, "prefill")
    if prefill is None:
        raise no_room(case, fast, Part(case.whole, fast, case.dtype))
    decodes = [group for name in others if (group := whole_group(case, name, "decode")) is not None]
    if not decodes:
        raise no_room(case, others[0], Part(case.whole, others[0], case.dtype))
    prefill, decode = together(case, [prefill, max(decodes, key=lambda group: group.requests_per_s)])
    slow = decode.stages[0].primary[0]
    notes = [
        f"{fast}: prefill, it has the fastest products; an estimated {prefill.requests_per_s:.3g} prompts/s{alone(case, prefill)}",
        f"{slow}: decode, an estimated {decode.requests_per_s:.3g} requests/s when full{alone(case, decode)}",
        *(f"{name}: left out, this version has one decode group" for name in others if name != slow),
    ]
    slower = min(prefill.requests_per_s, decode.requests_per_s)
    groups = [replace(group, requests_per_s=slower) for group in (prefill, decode)]
    return finish(case, "splitwise", groups, notes + unmeasured(case), flow=(Flow(0, 1, 1.0),))
