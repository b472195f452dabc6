"""Hetis: dense modules on few fast devices, decode attention on all that help (papers/hetis.md 3.1), every layout checked against the budgets.

Where the paper is silent: the ratio of the exclusion rule is taken to the search's current set, one device at a time; the best of the layouts that
the rule leaves (fewer primaries too, attention workers that do not pay left out) is the one with the highest estimated rate.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from math import gcd, inf, prod

from hetserve.planner.case import Case, kind_of, open_case
from hetserve.planner.draft import finish, no_layout
from hetserve.planner.estimate import Load, at_once, dense_s, load, together
from hetserve.planner.kinds import DEGREES, by_kind, degrees, named, rank_sets
from hetserve.planner.options import Options
from hetserve.planner.pipeline import pipeline
from hetserve.planner.told import gap
from hetserve.planner.why import expected, left_out, told, unmeasured
from hetserve.solve.partition import shared_s
from hetserve.spec.cluster import Cluster
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Group, Online, Plan, Stage
from hetserve.spec.workload import Workload

PAYS = 0.05  # a layout with another device must be expected to be so much better, or the device stays out: a profile's own errors are that large
EVERY_SUBSET = 6  # attention workers, or types of them, up to which every subset is tried; more: all or none
EVERY_SHAPE = 27  # ways to choose ranks type by type up to which all are tried


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
    for instances in _instances(case):
        parts = _divided(case, instances)
        removed = exclude(case, parts[0], options.delta)
        layouts = list(_layouts(case, parts, removed))
        layout = best_of(layouts)
        if layout is not None and (best is None or layout.rate > best.rate * (1 + PAYS)):
            best = layout
            removals = tuple(Removal(part[parts[0].index(one.device)], one.ratio) for part in parts for one in removed)
        tried += layouts
    if best is None:
        raise no_layout(case)
    rate = f"an estimated {best.rate:.3g} requests/s when full"
    bound = gap(case, best.rate, mixed=True, elsewhere=True)
    notes = [*_notes(case, best, tried, removals), rate, *bound, *told(case, best.groups), *unmeasured(case)]
    return finish(case, "hetis", best.groups, notes, Online(options.heads or "exact", options.theta))


def layer_times(case: Case, devices: list[str], work: Load) -> tuple[list[float], list[float]]:
    """Seconds a layer's dense work takes on each device, and how many layers' weights it has memory for; stored as is fastest."""
    count = case.model.layers
    times_s, most = [], []
    for name in devices:
        some = max(1, count - 1)
        per_layer = {kind: dense_s(case.step(name, (0, some), kind), work) / some for kind in case.weights(name)}
        kind = min(per_layer, key=lambda one: per_layer[one])
        each = case.weight_bytes(name, (0, count), kind) / count
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


def _instances(case: Case) -> list[int]:
    """Numbers of instances over which each type's devices divide evenly (step 1)."""
    common = gcd(*map(len, by_kind(case, case.names)))
    return [number for number in range(1, common + 1) if common % number == 0]


def _divided(case: Case, instances: int) -> list[list[str]]:
    """The devices of each instance: of every type as many, neighbours together, in the order of the file."""
    owner = {}
    for names in by_kind(case, case.names):
        each = len(names) // instances
        owner.update({name: number // each for number, name in enumerate(names)})
    return [[name for name in case.names if owner[name] == part] for part in range(instances)]


def _layouts(case: Case, parts: list[list[str]], removals: tuple[Removal, ...]) -> Iterator[Layout]:
    """Layouts of all instances, each with its own attention workers, that fit; devices of one place in every instance have one role."""
    first = parts[0]
    order = [first.index(one.device) for one in removals]
    rest = sorted(set(range(len(first))) - set(order))
    slowest_first = sorted(rest, key=lambda at: -min(layer_times(case, [first[at]], load(case, at_once(case)))[0]))
    for fewer in range(len(rest)):
        if fewer and _unit(case, first[slowest_first[fewer - 1]]) == _unit(case, first[slowest_first[fewer]]):
            continue
        out = [*order, *slowest_first[:fewer]]
        primaries = [at for at in range(len(first)) if at not in out]
        yield from _with_workers(case, parts, primaries, out)


def _with_workers(case: Case, parts: list[list[str]], primaries: list[int], out: list[int]) -> list[Layout]:
    """With these primaries and each subset of the others as attention workers; with the ranks that are best with none or all of these."""
    subsets = _subsets(case, parts[0], out)
    shapes = _shapes(case, [parts[0][at] for at in primaries])
    ends = {(workers, ranks): _layout(case, parts, primaries, workers, ranks) for workers in (subsets[0], subsets[-1]) for ranks in shapes}
    fitting = {key: layout for key, layout in ends.items() if layout is not None}
    best = best_of(fitting.values())
    if best is None:
        return []
    suit = next(ranks for (_, ranks), layout in fitting.items() if layout is best)
    more = [_layout(case, parts, primaries, workers, suit) for workers in subsets[1:-1]]
    return [*fitting.values(), *(layout for layout in more if layout is not None)]


def _layout(case: Case, parts: list[list[str]], primaries: list[int], workers: tuple[int, ...], ranks: tuple[int, ...]) -> Layout | None:
    """All instances; `ranks`: at most so many of each type in a stage, in the types' order."""
    groups = []
    for part in parts:
        kinds = by_kind(case, [part[at] for at in primaries])
        stages = [one for names, most in zip(kinds, ranks, strict=True) for one in rank_sets(case, names, most)]
        group = pipeline(case, stages, tuple(part[at] for at in workers))
        if group is None:
            return None
        groups.append(group)
    return Layout(tuple(together(case, groups)))


def _shapes(case: Case, primaries: list[str]) -> list[tuple[int, ...]]:
    """Numbers of ranks to try for each type (step 4): all combinations where they are few, else the same for all types."""
    choices = []
    for names in by_kind(case, primaries):
        largest = {most: max(map(len, rank_sets(case, names, most))) for most in degrees(case, names[0])}
        choices.append([most for most, found in largest.items() if found == most])
    if prod(map(len, choices)) <= EVERY_SHAPE:
        return list(product(*choices))
    return sorted({tuple(max(one for one in some if one <= most) for some in choices) for most in DEGREES})


def best_of(layouts: Iterable[Layout]) -> Layout | None:
    """The one with the highest rate; a larger one than others has to pay, in whichever order they were found."""
    best: Layout | None = None
    for layout in sorted(layouts, key=_size):
        if best is None or layout.rate > best.rate * (1 + PAYS if _size(layout) > _size(best) else 1.0):
            best = layout
    return best


def _subsets(case: Case, part: list[str], out: list[int]) -> list[tuple[int, ...]]:
    """Which of the devices are attention workers: few first. GPUs of a type stay together."""
    units: dict[Hashable, list[int]] = {}
    for at in out:
        units.setdefault(_unit(case, part[at]), []).append(at)
    if len(units) > EVERY_SUBSET:
        return [(), tuple(out)]
    chosen = [some for count in range(len(units) + 1) for some in combinations(units.values(), count)]
    return [tuple(at for unit in some for at in unit) for some in chosen]


def _unit(case: Case, name: str) -> Hashable:
    """What changes its role as one: a type of GPU, or one CPU device."""
    device = case.device(name)
    return kind_of(device) if device.is_gpu else name


def _size(layout: Layout) -> int:
    return sum(len(stage.pools) for group in layout.groups for stage in group.stages)


def _notes(case: Case, layout: Layout, tried: Iterable[Layout], removals: tuple[Removal, ...]) -> list[str]:
    """Why every device has its role; GPUs that share a role and its reason in one sentence."""
    ratios = {one.device: one.ratio for one in removals}
    stages = {name: stage for group in layout.groups for stage in group.stages for name in stage.primary}
    workers = {name for group in layout.groups for stage in group.stages for name in stage.attention}
    units: dict[Hashable, list[str]] = {}
    for name in case.names:
        layers = stages[name].layers if name in stages else None
        units.setdefault((_unit(case, name), layers, name in workers, name in ratios), []).append(name)
    return [f"{named(names)}: {_role(case, names, layout, tried, stages.get(names[0]), ratios)}" for names in units.values()]


def _role(case: Case, names: list[str], layout: Layout, tried: Iterable[Layout], stage: Stage | None, ratios: Mapping[str, float]) -> str:
    """Of devices that have the same for the same reason."""
    worker = any(name in one.attention for group in layout.groups for one in group.stages for name in names)
    if stage is not None:
        role = f"primary of layers {stage.layers[0]} to {stage.layers[1] - 1}, {stage.weights} weights"
    elif worker:
        role = "attention worker"
    else:
        role = left_out(case, names[0], layout.groups, [one.groups for one in tried], PAYS)
    out = [ratios[name] for name in names if name in ratios]
    if out:
        return f"{role}; without its products the slowest stage takes {max(out):.3f} times as long (Delta allows {1 + case.options.delta:.3f})"
    if stage is not None:
        return f"{role}; its products are worth more than Delta"
    return f"{role}; with it among the primaries less was expected" if worker else role
