"""The first layouts: groups by spectral partition and Kernighan-Lin for several group counts, then roles by the opposite cut of the coarser graph.

The paper sets the group count from memory; neighbours of it are tried as well. Which ratio of prefill to decode groups it takes is not in the notes:
every ratio is tried (few groups) or those around what the groups' rates ask for. Chosen here beside the paper's cut: roles by what each group is
relatively best at, and groups too small for the model merged into their nearest neighbour.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from hetserve.planner.hexgen2.network import Devices, Layout, Network
from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL, ROLES, Ints, Ranks
from hetserve.solve.fill import shared_rate
from hetserve.solve.sides import coarsen, most_between
from hetserve.solve.spectral import spectral_groups
from hetserve.solve.swaps import refine

SEQUENCES = 16  # of mean length that a replica is thought to have room for, for a first group count
FEW = 12  # group counts, and groups, up to which all are tried
NEIGHBOURS = (1.0, 0.75, 0.5, 1.25)  # of the first group count
NEAR = 2  # numbers of prefill groups tried on either side of what the rates ask for, where there are many groups
PACKED = 100  # random orders in which groups are filled where balanced ones do not hold the model
EASE = 0.5  # of a group's share of all memory: exchanges do not take more


def first_layouts(network: Network) -> list[Layout]:
    """One or two for each group count, best first."""
    found: dict[Layout, float] = {}
    cut = [groups_of(network, count) for count in group_counts(network)]
    for groups in cut:
        for layout in with_roles(network, groups):
            found[layout] = network.total(layout, network.rates(layout))
    if not any(found.values()):  # memory is tight: what is left of balance is to fit at all
        for groups in packed(network):
            for layout in with_roles(network, groups):
                found[layout] = network.total(layout, network.rates(layout))
    return sorted((one for one in found if found[one] > 0), key=lambda one: -found[one])


def group_counts(network: Network) -> list[int]:
    """How many groups memory allows for, and neighbours."""
    costs, demand, devices = network.strategies.costs, network.strategies.demand, useful(network)
    least = len(network.roles)  # a group of each
    if len(devices) < least:
        return []
    total = float(network.site.memory_bytes[devices].sum())
    one = network.strategies.asked.bytes(Ranks(int(network.site.kinds[0]), 1))
    weights = one.layer * costs.layers + one.first + one.last
    most = max(least, min(len(devices), int(total // weights)))
    first = total / (weights + SEQUENCES * demand.held * costs.kv_bytes * costs.layers)
    if most <= FEW:
        return list(range(least, most + 1))
    return sorted({min(most, max(least, round(first * part))) for part in NEIGHBOURS}, reverse=True)


def useful(network: Network) -> Ints:
    """Devices with room for their share of a layer and a sequence, among as many like them as there are in their machine; others begin left out."""
    site, costs, demand = network.site, network.strategies.costs, network.strategies.demand
    like = Counter(zip(site.nodes.tolist(), site.kinds.tolist(), strict=True))
    found = []
    for device, (node, kind) in enumerate(zip(site.nodes.tolist(), site.kinds.tolist(), strict=True)):
        ranks = max(one for one in site.degrees[kind] if one <= like[node, kind])
        held = network.strategies.asked.bytes(Ranks(kind, ranks))
        if site.memory_bytes[device] >= held.fixed + held.layer + demand.longest * costs.kv_bytes / ranks:
            found.append(device)
    return np.array(found, np.int64)


def groups_of(network: Network, count: int) -> list[Devices]:
    """About so many groups, each of which holds the model if any does."""
    devices = useful(network)
    weights, memory = network.site.weights, network.site.memory_bytes[devices]
    among = weights[np.ix_(devices, devices)]
    labels = refine(among, memory, spectral_groups(among, memory, count), EASE * float(memory.sum()) / count)
    groups = [tuple(devices[labels == group].tolist()) for group in range(count)]
    while len(groups) > 1 and (small := next((one for one in groups if not _holds(network, one)), None)):
        groups.remove(small)
        near = max(range(len(groups)), key=lambda one: weights[np.ix_(small, groups[one])].mean())
        groups[near] = tuple(sorted(groups[near] + small))
    return groups


def packed(network: Network) -> Iterator[list[Devices]]:
    """Groups no larger than they must be, filled in several orders of the devices: by where they are, by size, and a hundred at random."""
    devices = useful(network)
    by_size = devices[np.argsort(-network.site.memory_bytes[devices], kind="stable")]
    rng = np.random.default_rng(0)
    for order in (devices, devices[::-1], by_size, by_size[::-1], *(rng.permutation(devices) for _ in range(PACKED))):
        groups: list[Devices] = []
        filling: Devices = ()
        for device in order.tolist():
            filling = tuple(sorted((*filling, device)))
            if any(network.strategies.rate(filling, role) > 0 for role in network.roles):
                groups.append(filling)
                filling = ()
        if len(groups) >= len(network.roles):
            groups[-1] = tuple(sorted(groups[-1] + filling))
            yield groups


def with_roles(network: Network, groups: Sequence[Devices]) -> Iterator[Layout]:
    """By the opposite cut, the best of the numbers of prefill groups tried; and by what each group is best at. Where there is one role: that."""
    count = len(groups)
    if network.roles == (MIXED,):
        yield Layout(tuple(groups), (MIXED,) * count)
        return
    if count < 2:
        return
    rates = {role: [network.strategies.rate(group, role) for group in groups] for role in ROLES}
    _, shares = shared_rate(rates[PREFILL], rates[DECODE])
    wanted = min(count - 1, max(1, round(sum(shares))))
    tried = range(1, count) if count <= FEW else range(max(1, wanted - NEAR), min(count, wanted + NEAR + 1))
    labels = np.full(len(network.site), -1)
    for number, group in enumerate(groups):
        labels[list(group)] = number
    coarse = coarsen(network.site.weights, labels, count)
    by_cut = [_layout(groups, most_between(coarse, one).tolist()) for one in tried]
    yield max(by_cut, key=lambda one: network.total(one, network.rates(one)))
    for part in (0.5, 1e-9, 1 - 1e-9):  # the group that is to do both is rounded either way
        first = [share > part for share in shares]
        if 0 < sum(first) < count:
            yield _layout(groups, first)


def _layout(groups: Sequence[Devices], first: Sequence[bool]) -> Layout:
    return Layout(tuple(groups), tuple(PREFILL if one else DECODE for one in first))


def _holds(network: Network, group: Devices) -> bool:
    return all(network.strategies.rate(group, role) > 0 for role in network.roles)
