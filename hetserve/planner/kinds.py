"""Devices by kind: which are alike, and how those of one node may share layers by tensor parallelism."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from hetserve.planner.case import Case, kind_of
from hetserve.spec.plan import Group, Pool, Stage

Ranks = tuple[str, ...]  # devices of one kind and node that hold a stage's weights, one per tensor-parallel rank
DEGREES = (1, 2, 4, 8)


def by_kind(case: Case, names: Iterable[str]) -> list[list[str]]:
    """The devices of each type, in the order in which they come."""
    found: dict[Hashable, list[str]] = {}
    for name in names:
        found.setdefault(kind_of(case.device(name)), []).append(name)
    return list(found.values())


def degrees(case: Case, device: str) -> tuple[int, ...]:
    """How many devices like this may share a stage: as many as divide the model's heads and MLP. The CPU engine has one primary a stage."""
    model = case.model
    if not case.device(device).is_gpu:
        return (1,)
    parts = (model.kv_heads, model.q_heads, model.intermediate)
    return tuple(count for count in DEGREES if all(part % count == 0 for part in parts))


def rank_sets(case: Case, devices: Sequence[str], most: int) -> list[Ranks]:
    """Devices of one kind, in their order, cut into sets of at most `most` ranks; in each node as large ones as there are devices for."""
    nodes: dict[str, list[str]] = {}
    for name in devices:
        nodes.setdefault(case.device(name).node, []).append(name)
    sizes = [size for size in reversed(degrees(case, devices[0])) if size <= most]
    found = []
    for names in nodes.values():
        for size in sizes:
            while len(names) >= size:
                found.append(tuple(names[:size]))
                names = names[size:]
    return found


def signature(case: Case, names: Sequence[str]) -> tuple[Hashable, ...]:
    """What devices look like to the costs, in their order: groups laid out alike over two lists that look alike cost the same."""
    outside = {node.name: node.outside for node in case.cluster.nodes}
    nodes: dict[str, int] = {}
    found = []
    for device in map(case.device, names):
        found.append((case.like(device.name), device.memory_bytes, nodes.setdefault(device.node, len(nodes)), outside.get(device.node)))
    return tuple(found)


def renamed(group: Group, names: Mapping[str, str]) -> Group:
    """The group on other devices."""
    stages = []
    for stage in group.stages:
        primary, attention = (tuple(names[name] for name in some) for some in (stage.primary, stage.attention))
        pools = tuple(Pool(names[pool.device], pool.pages, pool.page_bytes) for pool in stage.pools)
        stages.append(Stage(stage.layers, primary, attention, pools, stage.weights))
    return Group(group.role, tuple(stages), group.requests_per_s)


def named(names: Sequence[str]) -> str:
    """For people: those that are numbered on end as first and last."""
    runs: list[list[str]] = []
    for name in names:
        stem, _, number = name.rpartition("-")
        if runs and number.isdecimal() and runs[-1][-1] == f"{stem}-{int(number) - 1}":
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(", ".join(run) if len(run) < 3 else f"{run[0]} to {run[-1]}" for run in runs)
