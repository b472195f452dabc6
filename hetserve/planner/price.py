"""What a plan costs: dollars an hour of its cluster, and dollars a million tokens at the throughput that its planner expects. No price is guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from hetserve.catalog import rows
from hetserve.errors import SpecError
from hetserve.planner.marks import bottleneck
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.plan import Group, Plan
from hetserve.spec.workload import Workload

LISTED = ("market", "hyperscaler")  # kinds of the catalog's prices, the first that a device has; what papers paid is theirs


@dataclass(frozen=True)
class Price:
    usd_per_hour: float
    source: str


@dataclass(frozen=True)
class Sum:
    """Several devices. What has no price is named and not in the sums; per million tokens is None then, and where no throughput is known."""

    devices: int
    usd_per_hour: float  # of those with a price
    unpriced: tuple[str, ...]
    usd_per_million_output_tokens: float | None = None
    usd_per_million_tokens: float | None = None  # prompts and answers together


@dataclass(frozen=True)
class Bill:
    requests_per_s: float | None  # as the plan's groups expect; None: they do not say
    links_limit: bool  # links between groups hold it below that, as the planner says: a token costs more
    input_tokens: float  # means of the load
    output_tokens: float
    cluster: Sum
    used: Sum  # the devices in any group
    prices: tuple[str, ...]  # how many of which GPU at which price, and whose word that is


def price_of(device: Device) -> Price | None:
    """Of one device: what the cluster file says, else what the catalog lists of its GPU; None: nobody said."""
    if device.price_per_hour is not None:
        return Price(device.price_per_hour, "the cluster file")
    return _listed(device.gpu) if device.gpu else None


@cache
def _listed(gpu: str) -> Price | None:
    try:
        listed = [row for kind in LISTED if (row := rows.price(gpu, kind)) is not None]
    except SpecError:  # a GPU that the catalog does not know; whoever needs more than its price has said so
        return None
    return Price(listed[0].usd_per_hour, f"{listed[0].kind}, {listed[0].status}: {listed[0].source}") if listed else None


def bill(plan: Plan, workload: Workload) -> Bill:
    """What the plan costs under a load. A load of fewer requests than the plan could serve is paid by those that come."""
    served = requests_per_s(plan)
    if served is not None:
        served = min(served, workload.request_rate)
    members = {name for group in plan.groups for stage in group.stages for name in (*stage.primary, *stage.attention)}
    used = [device for device in plan.cluster.devices if device.name in members]
    whole = _sum(plan.cluster.devices, served, workload)
    links_limit = bool(bottleneck(plan.notes).links)
    return Bill(served, links_limit, workload.input_tokens, workload.output_tokens, whole, _sum(used, served, workload), _told(plan.cluster))


def hourly(cluster: Cluster) -> Sum:
    """What the cluster costs, whatever runs on it."""
    return _sum(cluster.devices, None, None)


def requests_per_s(plan: Plan) -> float | None:
    """Requests that the plan serves in a second, each counted once: mixed groups in sum, prefill and decode groups as much as the flow's shares let
    both sides keep up. Links between groups are not counted. None: a group does not say what it serves."""
    if any(group.requests_per_s <= 0 for group in plan.groups):
        return None
    rates = {role: [n for n, group in enumerate(plan.groups) if group.role == role] for role in ("mixed", "prefill", "decode")}
    mixed = _total(plan.groups, rates["mixed"])
    sources, targets = rates["prefill"], rates["decode"]
    if not sources or not targets:
        return mixed
    if not plan.flow:
        return mixed + min(_total(plan.groups, sources), _total(plan.groups, targets))
    return mixed + _along(plan, sources, targets)


def _along(plan: Plan, sources: list[int], targets: list[int]) -> float:
    """The largest sum of prefill rates, none above its group's, whose shares overload no decode group."""
    from scipy.optimize import linprog

    shares = np.zeros((len(targets), len(sources)))
    for arc in plan.flow:
        if arc.source in sources and arc.target in targets:
            shares[targets.index(arc.target), sources.index(arc.source)] += arc.share
    sends = {arc.source for arc in plan.flow}
    most = [plan.groups[n].requests_per_s if n in sends else 0.0 for n in sources]
    found = linprog(-np.ones(len(sources)), shares, [plan.groups[n].requests_per_s for n in targets], bounds=[(0, one) for one in most])
    return float(-found.fun)


def _total(groups: Sequence[Group], chosen: Sequence[int]) -> float:
    return sum(groups[n].requests_per_s for n in chosen)


def _sum(devices: Sequence[Device], served: float | None, workload: Workload | None) -> Sum:
    prices = [(device.name, price_of(device)) for device in devices]
    usd = sum(price.usd_per_hour for _, price in prices if price is not None)
    unpriced = tuple(name for name, price in prices if price is None)
    if unpriced or not served or workload is None:
        return Sum(len(devices), usd, unpriced)
    million = usd / 3600 / served * 1e6  # of requests, each of one token
    return Sum(len(devices), usd, unpriced, million / workload.output_tokens, million / (workload.input_tokens + workload.output_tokens))


def _told(cluster: Cluster) -> tuple[str, ...]:
    paid = Counter((device.gpu or device.name, price) for device in cluster.devices if (price := price_of(device)) is not None)
    return tuple(f"{count} x {name} at {price.usd_per_hour:g} $/h ({price.source})" for (name, price), count in paid.items())
