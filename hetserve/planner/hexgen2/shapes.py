"""The ways to lay a group's devices out as pipeline stages: which of them share layers, and in which order the stages follow each other.

Tensor parallelism only among devices of one kind and machine, as in HexGen. Which orders are tried is not in the paper; chosen here: of up to three
stages every order, of more those that keep a machine's stages together, its machines in every order up to three and along the fastest links beyond.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import permutations, product
from math import prod

from hetserve.planner.hexgen2.site import Floats, Site

EVERY_ORDER = 3  # stages, and machines, up to which all orders are tried
MOST_SPLITS = 48  # ways to share layers in all machines together that are tried; beyond, each machine's sets are as large as can be up to some
# size, and if these are too many, the same size everywhere

Stages = tuple[tuple[int, ...], ...]  # devices of each, in the order of the layers


def shapes(site: Site, devices: Sequence[int], layers: int) -> Iterator[Stages]:
    """All that are tried; no two alike to the costs."""
    blocks: dict[tuple[int, int], list[int]] = {}
    for device in devices:
        blocks.setdefault((int(site.nodes[device]), int(site.kinds[device])), []).append(device)
    seen: set[tuple[tuple[int, int, int], ...]] = set()
    for chosen in _chosen([(len(members), site.degrees[kind]) for (_, kind), members in blocks.items()]):
        stages = [part for members, sizes in zip(blocks.values(), chosen, strict=True) for part in _cut(members, sizes)]
        if len(stages) > layers:
            continue
        for order in _orders(site, stages):
            like = tuple((len(stage), int(site.kinds[stage[0]]), int(site.nodes[stage[0]])) for stage in order)
            if like not in seen:
                seen.add(like)
                yield order


def _chosen(blocks: Sequence[tuple[int, tuple[int, ...]]]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """For each block of (devices alike in one machine, allowed sizes) the sizes of its sets."""
    for each in (_splits, _uniform):
        splits = [each(count, degrees) for count, degrees in blocks]
        if prod(map(len, splits)) <= MOST_SPLITS:
            yield from product(*splits)
            return
    for most in sorted({size for _, degrees in blocks for size in degrees}):
        yield tuple(_uniform(count, tuple(size for size in degrees if size <= most))[-1] for count, degrees in blocks)


@cache
def _splits(count: int, degrees: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """All ways to cut so many devices into sets of allowed sizes, largest set first."""
    if count == 0:
        return ((),)
    found = []
    for size in sorted((one for one in degrees if one <= count), reverse=True):
        found += [(size, *rest) for rest in _splits(count - size, tuple(one for one in degrees if one <= size))]
    return tuple(found)


@cache
def _uniform(count: int, degrees: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """For each allowed size: as many sets of it as there are devices for, the rest in sets as large as can be."""
    found = []
    for most in degrees:
        sizes, left = [], count
        for size in sorted((one for one in degrees if one <= most), reverse=True):
            sizes += [size] * (left // size)
            left %= size
        found.append(tuple(sizes))
    return tuple(dict.fromkeys(found))


def _cut(members: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    first = 0
    for size in sizes:
        yield tuple(members[first : first + size])
        first += size


def _orders(site: Site, stages: list[tuple[int, ...]]) -> Iterator[Stages]:
    if len(stages) <= EVERY_ORDER:
        yield from permutations(stages)
        return
    machines: dict[int, list[tuple[int, ...]]] = {}
    for stage in stages:
        machines.setdefault(int(site.nodes[stage[0]]), []).append(stage)
    for order in permutations(machines) if len(machines) <= EVERY_ORDER else [_path(site.bytes_per_s, machines)]:
        line = tuple(stage for node in order for stage in machines[node])
        yield line
        yield line[::-1]


def _path(bytes_per_s: Floats, machines: dict[int, list[tuple[int, ...]]]) -> list[int]:
    """Machines so that each is followed by the one it has the fastest link to; from the first."""
    left = list(machines)
    path = [left.pop(0)]
    while left:
        here = machines[path[-1]][0][0]
        path.append(left.pop(max(range(len(left)), key=lambda one: bytes_per_s[here, machines[left[one]][0][0]])))
    return path
