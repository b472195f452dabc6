"""The KV of one request on its way from a prefill group to a decode group: how long it takes, and what it takes of links that others use as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hetserve.planner.hexgen2.site import Site
from hetserve.planner.hexgen2.strategy import Strategy

Wire = tuple[Literal["out of", "into"], int]  # what a machine sends to all others, or receives from them


@dataclass(frozen=True)
class Transfer:
    """Attributes:
    seconds: until it is over, if nothing else is on its way.
    shared_s: seconds that a machine's link is busy with it; links of unknown bandwidth left out.
    """

    seconds: float
    shared_s: dict[Wire, float]

    @property
    def most(self) -> float:
        """Requests per second, if nothing else is on its way."""
        return 1 / max(self.seconds, 1e-12)


def transfer(site: Site, prefill: Strategy, decode: Strategy, layer_bytes: float) -> Transfer:
    """Each layer goes from the devices that computed it to those that will use it, heads to their ranks.

    The transfers share what they share: those between two machines the one link between them, those within a machine the link between two devices.
    The slowest of these links decides how long it takes (notes 2.2; which transfers share is chosen here). What leaves a machine, to whichever other,
    shares what the machine sends, and so does what it receives: as the simulator has it.

    Args:
        layer_bytes: KV of one layer of a request, all heads.
    """
    loads: dict[tuple[bool, int, int], tuple[float, float]] = {}
    shared_s: dict[Wire, float] = {}
    for source, target, layers in _overlaps(prefill, decode):
        whole = layers * layer_bytes
        for a, b, share in _shards(source, target):
            if a == b:
                continue
            here, there = int(site.nodes[a]), int(site.nodes[b])
            far = here != there
            key = (True, here, there) if far else (False, a, b)
            latency_s, busy_s = loads.get(key, (0.0, 0.0))
            loads[key] = (max(latency_s, float(site.latency_s[a, b])), busy_s + whole * share / float(site.bytes_per_s[a, b]))
            if far and not site.alone[a, b]:
                wires: tuple[Wire, Wire] = ("out of", here), ("into", there)
                for wire in wires:
                    shared_s[wire] = shared_s.get(wire, 0.0) + whole * share / float(site.outside_bytes_per_s[wire[1]])
    slowest_s = max((latency_s + busy_s for latency_s, busy_s in loads.values()), default=0.0)
    return Transfer(slowest_s, {wire: seconds for wire, seconds in shared_s.items() if seconds > 0})


def _overlaps(prefill: Strategy, decode: Strategy) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Stages of either that have layers in common, and how many."""
    found, i, j, at = [], 0, 0, 0
    end_i, end_j = prefill.layers[0], decode.layers[0]
    while True:
        until = min(end_i, end_j)
        found.append((prefill.stages[i], decode.stages[j], until - at))
        at = until
        if end_i == until:
            i += 1
            end_i += prefill.layers[i] if i < len(prefill.layers) else 0
        if end_j == until:
            j += 1
            end_j += decode.layers[j] if j < len(decode.layers) else 0
        if i == len(prefill.layers):
            return found


def _shards(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, int, float]]:
    """(from, to, share of the heads) of ranks that hold heads in common; both sides deal heads out in order and evenly."""
    if len(source) == len(target):
        return [(a, b, 1 / len(source)) for a, b in zip(source, target, strict=True)]
    found = []
    for i, a in enumerate(source):
        for j, b in enumerate(target):
            share = min((i + 1) / len(source), (j + 1) / len(target)) - max(i / len(source), j / len(target))
            if share > 1e-12:
                found.append((a, b, share))
    return found
