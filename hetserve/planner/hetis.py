"""Hetis: dense modules on few fast devices, decode attention on all that help (papers/hetis.md 3.1), every layout checked against the budgets.

Where the paper is silent: the ratio of the exclusion rule is taken to the search's current set, one device at a time; the best of the layouts that
the rule leaves (fewer primaries too, attention workers that do not pay left out) is the one with the highest estimated rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import gcd, inf

from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.estimate import Load, at_once, dense_s, load, together
from hetserve.planner.options import Options
from hetserve.planner.pipeline import pipeline
from hetserve.planner.whole import whole_group
from hetserve.planner.why import expected, left_out, unmeasured
from hetserve.solve.partition import shared_s
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Group, Online, Plan
from hetserve.spec.workload import Workload

PAYS = 0.05  # a layout with another device must be expected to be so much better, or the device stays out: a profile's own errors are that large
EVERY_SUBSET = 6  # attention workers up to which every subset is tried; more: all or none


@dataclass(frozen=True)
class Removal:
    """A device that the exclusion rule took from the primaries."""

    device: str
    ratio: float  # the slowest stage's time without it over that with it


@dataclass(frozen=True)
class Layout:
    groups: tuple[Group, ...]

    @property
    def rate(self) -> float:
        return expected(self.groups)


def plan_hetis(cluster: Cluster, model: ModelSpec, workload: Workload | None, options: Options) -> Plan:
    """Primaries by the hierarchical search, the others attention workers where that pays, or left out.

    Raises:
        ResourceError: no layout fits. UsageError, SpecError: as plan_uniform.
    """
    case = open_case(cluster, model, workload, options)
    best: Layout | None = None
    removals: tuple[Removal, ...] = ()
    tried: list[Layout] = []
    for instances in _instances(cluster):
        parts = _divided(cluster, instances)
        removed = exclude(case, parts[0], options.delta)
        layouts = list(_layouts(case, parts, removed))
        layout = best_of(layouts)
        if layout is not None and (best is None or layout.rate > best.rate * (1 + PAYS)):
            best, removals = layout, removed
        tried += layouts
    if best is None:
        raise no_layout(case)
    online = Online(options.heads or "exact", options.theta)
    return finish(case, "hetis", best.groups, _notes(case, best, tried, removals), online)


def kind_of(device: Device) -> tuple[str, str, str, int, str]:
    """What makes two devices of one type. A GPU's cores are its worker's process's, which waits on them."""
    return (device.kind, device.gpu, device.isa, 0 if device.is_gpu else len(device.cores), str(device.stretch))


def layer_times(case: Case, devices: list[str], work: Load) -> tuple[list[float], list[float]]:
    """Seconds a layer's dense work takes on each device, and how many layers' weights it has memory for; stored as is fastest."""
    count = case.model.layers
    times_s, most = [], []
    for name in devices:
        some = max(1, count - 1)
        per_layer = {kind: dense_s(case, name, (0, some), kind, work) / some for kind in case.weights(name)}
        kind = min(per_layer, key=lambda one: per_layer[one])
        each = case.costs.weight_bytes(name, (0, count), kind) / count
        empty = case.device(name).memory_bytes - case.workspace_bytes(name, (0, 1), kind)
        times_s.append(per_layer[kind])
        most.append(max(0.0, empty / each))
    return times_s, most


def exclude(case: Case, devices: list[str], delta: float) -> tuple[Removal, ...]:
    """Devices that leave the primaries, in order: the slowest first, while without it the slowest stage takes at most 1 + delta as long (step 3)."""
    times_s, most = layer_times(case, devices, load(case, at_once(case)))
    left, removed = sorted(range(len(devices)), key=lambda one: (-times_s[one], -one)), []
    while len(left) > 1:
        now_s, without_s = (shared_s(case.model.layers, *zip(*((times_s[one], most[one]) for one in some), strict=True)) for some in (left, left[1:]))
        if not without_s <= (1 + delta) * now_s or without_s == inf:
            break
        removed.append(Removal(devices[left[0]], without_s / now_s if now_s < inf else 1.0))
        del left[0]
    return tuple(removed)


def _instances(cluster: Cluster) -> list[int]:
    """Numbers of instances over which each type's devices divide evenly (step 1)."""
    counts: dict[tuple[str, str, str, int, str], int] = {}
    for device in cluster.devices:
        counts[kind_of(device)] = counts.get(kind_of(device), 0) + 1
    common = gcd(*counts.values())
    return [number for number in range(1, common + 1) if common % number == 0]


def _divided(cluster: Cluster, instances: int) -> list[list[str]]:
    """The devices of each instance: of every type as many, in the order of the file."""
    parts: list[list[str]] = [[] for _ in range(instances)]
    seen: dict[tuple[str, str, str, int, str], int] = {}
    for device in cluster.devices:
        number = seen[kind_of(device)] = seen.get(kind_of(device), -1) + 1
        parts[number % instances].append(device.name)
    return parts


def _layouts(case: Case, parts: list[list[str]], removals: tuple[Removal, ...]) -> Iterator[Layout]:
    """Layouts of all instances, each with its own attention workers, that fit; devices of one place in every instance have one role."""
    order = [parts[0].index(one.device) for one in removals]
    rest = sorted(set(range(len(parts[0]))) - set(order))
    slowest_first = sorted(rest, key=lambda at: -min(layer_times(case, [parts[0][at]], load(case, at_once(case)))[0]))
    for fewer in range(len(rest)):
        out = [*order, *slowest_first[:fewer]]
        primaries = [at for at in range(len(parts[0])) if at not in out]
        for workers in _subsets(out):
            groups = [_group(case, [part[at] for at in primaries], tuple(part[at] for at in workers)) for part in parts]
            fitting = [one for one in groups if one is not None]
            if len(fitting) == len(parts):
                yield Layout(tuple(together(case, fitting)))


def best_of(layouts: Iterable[Layout]) -> Layout | None:
    """The one with the highest rate; a larger one than others has to pay, in whichever order they were found."""
    best: Layout | None = None
    for layout in sorted(layouts, key=_size):
        if best is None or layout.rate > best.rate * (1 + PAYS if _size(layout) > _size(best) else 1.0):
            best = layout
    return best


def _subsets(devices: list[int]) -> list[tuple[int, ...]]:
    """Which of the devices are attention workers: few first."""
    if len(devices) > EVERY_SUBSET:
        return [(), tuple(devices)]
    return [chosen for count in range(len(devices) + 1) for chosen in combinations(devices, count)]


def _size(layout: Layout) -> int:
    return sum(len(stage.pools) for group in layout.groups for stage in group.stages)


def _group(case: Case, primaries: list[str], workers: tuple[str, ...]) -> Group | None:
    if len(primaries) == 1:
        return whole_group(case, primaries[0], attention=workers)
    return pipeline(case, primaries, workers) if len(primaries) <= case.model.layers else None


def _notes(case: Case, layout: Layout, tried: Iterable[Layout], removals: tuple[Removal, ...]) -> list[str]:
    """Why every device has its role."""
    ratios = {one.device: one.ratio for one in removals}
    primaries = {stage.primary[0]: stage for group in layout.groups for stage in group.stages}
    workers = {name for group in layout.groups for stage in group.stages for name in stage.attention}
    notes = []
    for device in case.cluster.devices:
        name = device.name
        if name in primaries:
            stage = primaries[name]
            role = f"primary of layers {stage.layers[0]} to {stage.layers[1] - 1}, {stage.weights} weights"
        elif name in workers:
            role = "attention worker"
        else:
            role = left_out(case, name, layout.groups, [one.groups for one in tried], PAYS)
        if name in ratios:
            role += f"; without its products the slowest stage takes {ratios[name]:.3f} times as long (Delta allows {1 + case.options.delta:.3f})"
        elif name in primaries:
            role += "; its products are worth more than Delta"
        elif name in workers:
            role += "; with it among the primaries less was expected"
        notes.append(f"{name}: {role}")
    return [*notes, f"an estimated {layout.rate:.3g} requests/s when full", *unmeasured(case)]
