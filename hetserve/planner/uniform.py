"""GPUs of one kind only, the best of all kinds: what everything else is compared with. Without a GPU it is one device, the fastest."""

from __future__ import annotations

from hetserve.planner.alike import Way, best, total
from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import Part, finish, no_layout, no_room
from hetserve.planner.estimate import together
from hetserve.planner.kinds import by_kind, named
from hetserve.planner.options import Options
from hetserve.planner.told import gap
from hetserve.planner.whole import fastest_device, whole_group
from hetserve.planner.why import devices, expected, told
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Plan
from hetserve.spec.workload import Workload


def plan_uniform(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """Mixed groups on like GPUs, TP x PP x replicas as is fastest; without a GPU one, on the device with the fastest products (the first of equals).

    Raises:
        ResourceError: no kind's devices hold the weights and one sequence of max_model_len tokens.
        UsageError: options that contradict each other. SpecError: a profile of something else.
    """
    case = open_case(cluster, model, workload, options)
    gpus = [device.name for device in cluster.devices if device.is_gpu]
    return _one_kind(case, gpus) if gpus else _one_device(case)


def _one_kind(case: Case, gpus: list[str]) -> Plan:
    rates: dict[str, str] = {}
    chosen: Way = ()
    for names in by_kind(case, gpus):
        way = best(case, names) or ()
        rates[named(names)] = f"{total(way):.3g} requests/s" if way else "they do not hold the model"
        chosen = max(chosen, way, key=total)
    if not chosen:
        raise no_layout(case)
    groups = together(case, chosen)
    left = [name for name in case.names if name not in devices(groups)]
    notes = [f"{names}: {rate}" for names, rate in rates.items()] if len(rates) > 1 else []
    bound = gap(case, expected(groups), mixed=True)
    return finish(case, "uniform", groups, [*bound, *told(case, groups), *notes, *([f"left out: {named(left)}"] if left else [])])


def _one_device(case: Case) -> Plan:
    device = fastest_device(case)
    group = whole_group(case, (device,))
    if group is None:
        raise no_room(case, Part(case.whole, (device,), case.dtype))
    return finish(case, "uniform", [group], [f"{device}: everything, it has the fastest products"])
