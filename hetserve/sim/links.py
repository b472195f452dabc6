"""Transfers that share links: each gets its max-min fair share of every link on its way, anew whenever one begins or ends.

A transfer first waits its latency, in which it takes no bandwidth, then its bytes flow.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field

from hetserve.sim.drain import Done, Push


@dataclass(frozen=True)
class Way:
    """From one device to another."""

    latency_s: float
    links: tuple[str, ...]  # what it goes over; none: it takes no time


@dataclass
class _Flows:
    """Transfers on one way: all get the same, so each ends once so much has been given to one that was there from the beginning."""

    rate: float = 0.0  # bytes per second of each
    given: float = 0.0  # bytes
    heap: list[tuple[float, int, Done]] = field(default_factory=list)  # (given when it ends, number, done)

    def ends_s(self, now_s: float) -> float:
        """When the first one will have ended, if the rate stays."""
        return now_s + max(0.0, self.heap[0][0] - self.given) / self.rate


class FairLinks:
    """Carries transfers. The work of a beginning or an end grows with the ways in use, not with the transfers.

    Args:
        bytes_per_s: of each link.
        push: has something done at a time.
    """

    def __init__(self, bytes_per_s: Mapping[str, float], push: Push) -> None:
        self._bytes_per_s = bytes_per_s
        self._push = push
        self._ways: dict[tuple[str, ...], _Flows] = {}  # those in use
        self._now_s = 0.0  # until when they have been given their bytes
        self._begun = 0
        self._turn = 0  # how often it has changed who ends first

    def begin(self, way: Way, size_bytes: float, done: Done, now_s: float) -> None:
        """Starts a transfer; `done` is called when the last byte is there."""
        if not way.links or size_bytes <= 0:
            self._push(now_s + way.latency_s, done)
            return
        self._push(now_s + way.latency_s, lambda then_s: self._join(way.links, size_bytes, done, then_s))

    def _join(self, links: tuple[str, ...], size_bytes: float, done: Done, now_s: float) -> None:
        self._give(now_s)
        flows = self._ways.setdefault(links, _Flows())
        heapq.heappush(flows.heap, (flows.given + size_bytes, self._begun, done))
        self._begun += 1
        self._again()

    def _give(self, now_s: float) -> None:
        """What all have been carrying since the last change."""
        for flows in self._ways.values():
            flows.given += (now_s - self._now_s) * flows.rate
        self._now_s = now_s

    def _again(self) -> None:
        """New rates, and whose end is waited for."""
        rates = fair_rates({links: len(flows.heap) for links, flows in self._ways.items()}, self._bytes_per_s)
        for links, flows in self._ways.items():
            flows.rate = rates[links]
        self._turn += 1
        if self._ways:
            at_s, _, links = min((flows.ends_s(self._now_s), flows.heap[0][1], links) for links, flows in self._ways.items())
            self._push(at_s, self._ends(links, self._turn))

    def _ends(self, links: tuple[str, ...], turn: int) -> Done:
        def end(now_s: float) -> None:
            if turn != self._turn:  # something has changed since
                return
            self._give(now_s)
            flows = self._ways[links]
            _, _, done = heapq.heappop(flows.heap)
            if not flows.heap:
                del self._ways[links]
            self._again()
            done(now_s)

        return end


def fair_rates(flows: Mapping[tuple[str, ...], int], bytes_per_s: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    """The max-min fair rate of each flow, by the links it goes over: none can have more without one that has no more having less.

    Filled up progressively: of all links, the one whose share for each flow left is the smallest settles those flows.

    Args:
        flows: how many go each way.
    """
    rates: dict[tuple[str, ...], float] = {}
    room = {link: bytes_per_s[link] for way in flows for link in way}
    users = dict.fromkeys(room, 0)  # flows not settled
    for way, count in flows.items():
        for link in way:
            users[link] += count
    while len(rates) < len(flows):
        fullest = min((link for link in room if users[link]), key=lambda link: room[link] / users[link])
        share = room[fullest] / users[fullest]
        for way in [way for way in flows if fullest in way and way not in rates]:
            rates[way] = share
            for link in way:
                room[link] -= share * flows[way]
                users[link] -= flows[way]
    return rates
