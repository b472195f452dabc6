"""Transfers that share links: each gets its max-min fair share of every link on its way, anew whenever one begins or ends.

A transfer first waits its latency, in which it takes no bandwidth, then its bytes flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetserve.sim.drain import Done, Drain, Push


@dataclass(frozen=True)
class Way:
    """From one device to another."""

    latency_s: float
    links: tuple[str, ...]  # what it goes over; none: it takes no time


class FairLinks:
    """Carries transfers.

    Args:
        bytes_per_s: of each link.
        push: has something done at a time.
    """

    def __init__(self, bytes_per_s: Mapping[str, float], push: Push) -> None:
        self._push = push
        self._drain: Drain[tuple[str, ...]] = Drain(lambda ways: fair_rates(ways, bytes_per_s), push)

    def begin(self, way: Way, size_bytes: float, done: Done, now_s: float) -> None:
        """Starts a transfer; `done` is called when the last byte is there."""
        if not way.links or size_bytes <= 0:
            self._push(now_s + way.latency_s, done)
            return
        self._push(now_s + way.latency_s, lambda then_s: self._drain.begin(way.links, size_bytes, done, then_s))


def fair_rates(ways: Sequence[tuple[str, ...]], bytes_per_s: Mapping[str, float]) -> list[float]:
    """The max-min fair rate of each flow, given the links it goes over: none can have more without one that has no more having less.

    Filled up progressively: of all links, the one whose share for each flow left is the smallest settles those flows.
    """
    flows = Counter(ways)  # those that go the same way fare alike
    rates: dict[tuple[str, ...], float] = {}
    room = {link: bytes_per_s[link] for way in flows for link in way}
    while len(rates) < len(flows):
        users = {link: sum(count for way, count in flows.items() if link in way and way not in rates) for link in room}
        link = min((link for link in room if users[link]), key=lambda link: room[link] / users[link])
        share = room[link] / users[link]
        for way in [way for way in flows if link in way and way not in rates]:
            rates[way] = share
            for other in way:
                room[other] -= share * flows[way]
    return [rates[way] for way in ways]
