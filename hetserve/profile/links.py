"""A cluster file's declared links held against what the machine does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from hetserve.profile.fitted import bulk_rates, least_latency_s
from hetserve.profile.run import measure_pair, require_here
from hetserve.profile.tasks import Effort
from hetserve.spec.cluster import Cluster, Link

BOUND = 2.0  # a declaration that is further off than this factor is wrong


@dataclass(frozen=True)
class MeasuredLink:
    """A declared link and what was measured on it."""

    link: Link
    latency_s: float  # one way, a small message
    bytes_per_s: float  # large messages

    @property
    def fault(self) -> str:
        """What is wrong with the declaration; empty: nothing. Emulation can only make a link slower than it is."""
        link, least = self.link, 0.0 if self.link.emulate else 1 / BOUND
        latency = self.latency_s / link.latency_s if link.latency_s else BOUND + 1
        rate = link.bytes_per_s / self.bytes_per_s
        if not least <= latency <= BOUND:
            return f"declared with a latency of {link.latency_s * 1e6:,.0f} us, measured {self.latency_s * 1e6:,.0f} us"
        if not least <= rate <= BOUND:
            return f"declared with {link.bytes_per_s / 1e9:,.2f} GB/s, measured {self.bytes_per_s / 1e9:,.2f} GB/s"
        return ""


def measure_declared(cluster: Cluster, effort: Effort, tick: Callable[[], None]) -> tuple[MeasuredLink, ...]:
    """Every declared link, measured.

    Raises:
        UnsupportedError: a device is on another node.
        WorkerError: a measuring process failed.
    """
    require_here(cluster)
    found = []
    for pair in combinations(cluster.devices, 2):
        wanted = [link for ends in (pair, pair[::-1]) if (link := cluster.link(ends[0].name, ends[1].name))]
        if wanted:
            task, samples = measure_pair(pair, effort, tick)
            rates = bulk_rates(task, samples)
            found += [MeasuredLink(link, least_latency_s(samples), rates[link.source, link.target]) for link in wanted]
    return tuple(found)
