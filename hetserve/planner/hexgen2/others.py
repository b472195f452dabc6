"""Layouts as other systems would make them of the same devices: candidates beside what the search finds, and what it is held against.

splitwise: the fastest kind computes prompts, all others decode, each side in as many groups as hold the model, or in one. distserve, and uniform
where groups do both kinds of work: devices of one kind only, in equal groups within machines, the best of all kinds, sizes and shares.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hetserve.planner.hexgen2.network import Devices, Layout, Network
from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL, ROLES, Ranks, Site


def others(network: Network) -> dict[str, Layout]:
    """The best layout of each other system, where it has one that holds the model."""
    made = {"uniform": _alike(network)} if network.roles == (MIXED,) else {"splitwise": _phases(network), "distserve": _alike(network)}
    found = {}
    for name, layouts in made.items():
        totals = [(network.total(layout, network.rates(layout)), layout) for layout in layouts]
        total, layout = max(totals, key=lambda one: one[0], default=(0.0, None))
        if layout is not None and total > 0:
            found[name] = layout
    return found


def _phases(network: Network) -> Iterator[Layout]:
    site, asked = network.site, network.strategies.asked
    kinds = {int(kind) for kind in site.kinds}
    fastest = min(kinds, key=lambda kind: asked.prefill(Ranks(kind, 1)).layer_s)
    fast = tuple(np.flatnonzero(site.kinds == fastest).tolist())
    slow = tuple(np.flatnonzero(site.kinds != fastest).tolist())
    if not slow:
        return
    for first in {(fast,), _filled(network, fast, PREFILL)}:
        for second in {(slow,), _filled(network, slow, DECODE)}:
            if first and second:
                yield Layout(first + second, (PREFILL,) * len(first) + (DECODE,) * len(second))


def _filled(network: Network, devices: Devices, role: str) -> tuple[Devices, ...]:
    """The devices in groups, machine by machine, each as small as holds the model; what is left joins the last."""
    groups: list[Devices] = []
    filling: Devices = ()
    for device in sorted(devices, key=lambda one: (int(network.site.nodes[one]), one)):
        filling = tuple(sorted((*filling, device)))
        if network.strategies.rate(filling, role) > 0:
            groups.append(filling)
            filling = ()
    if groups:
        groups[-1] = tuple(sorted(groups[-1] + filling))
    return tuple(groups)


def _alike(network: Network) -> Iterator[Layout]:
    site, rate = network.site, network.strategies.rate
    for kind in {int(kind) for kind in site.kinds}:
        for size in site.degrees[kind]:
            groups = _equal(site, kind, size)
            if network.roles == (MIXED,):
                if groups:
                    yield Layout(groups, (MIXED,) * len(groups))
            elif len(groups) > 1:
                first, second = (rate(groups[0], role) for role in ROLES)
                wanted = round(len(groups) * second / (first + second)) if first + second else 0
                for count in {wanted - 1, wanted, wanted + 1} & set(range(1, len(groups))):
                    yield Layout(groups, (PREFILL,) * count + (DECODE,) * (len(groups) - count))


def _equal(site: Site, kind: int, size: int) -> tuple[Devices, ...]:
    """As many groups of so many devices of a kind as each machine has."""
    found: list[Devices] = []
    for node in dict.fromkeys(site.nodes.tolist()):
        members = np.flatnonzero((site.kinds == kind) & (site.nodes == node)).tolist()
        found += [tuple(members[first : first + size]) for first in range(0, len(members) - size + 1, size)]
    return tuple(found)
