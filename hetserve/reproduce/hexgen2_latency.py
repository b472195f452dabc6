"""How long a request takes, from arrival to its last token, at three quarters of what the weaker of two systems serves: HexGen-2 beside DistServe on
eight H100 of the same price, and beside HexGen on its own cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from hetserve.reproduce.hexgen2_case import HETEROGENEOUS, HOMOGENEOUS, MIX, MODELS, Cell, Served, drawn_for, plan_for, serve
from hetserve.reproduce.hexgen2_throughput import mean
from hetserve.reproduce.report import Bars, Found, Report, Row, Table
from hetserve.reproduce.setup import Setup

SHARE = 0.75  # of the peak: the paper's


@dataclass(frozen=True)
class Place:
    cluster: str
    model: str
    data: Path | None
    fewer: int = 1


@dataclass(frozen=True)
class Beside:
    """Both systems at one rate."""

    system: str
    rate_per_s: float
    ours: Served
    theirs: Served

    @property
    def ratio(self) -> float:
        return self.theirs.latency_s / self.ours.latency_s


def run(setup: Setup) -> Report:
    return report([Place(*where, setup.data) for where in product(HETEROGENEOUS, MODELS)], setup)


def report(places: list[Place], setup: Setup) -> Report:
    found = list(zip(places, setup.each(compare, places), strict=True))
    pairs = [(place, pair) for place, both in found for pair in both]
    ratio = mean(pair.ratio for _, pair in pairs)
    rows: list[Row] = [
        {
            "model": place.model,
            "cluster": place.cluster,
            "beside": pair.system,
            "requests/s": pair.rate_per_s,
            "hexgen2, s": pair.ours.latency_s,
            "the other, s": pair.theirs.latency_s,
            "ratio": pair.ratio,
            "hexgen2's first token, s": pair.ours.first_token_s,
            "the other's, s": pair.theirs.first_token_s,
        }
        for place, pair in pairs
    ]
    systems = list(dict.fromkeys(pair.system for _, pair in pairs))
    heights = {name: [pair.ratio for _, pair in pairs if pair.system == name] for name in systems}
    bars = Bars("mean latency, other / hexgen2", tuple(f"{one.model} {one.cluster}" for one in places), heights, {"on average": 1.5})
    inputs = {place.model: pair.ours.inputs | {"model": place.model} for place, pair in pairs}
    notes = tuple(f"{name}: {mean(one for one in heights[name] if one):.2f} on average" for name in systems)
    table = Table(f"Mean seconds of a request at {SHARE:.0%} of the weaker system's peak", "simulated", tuple(rows), tuple(inputs.values()))
    how = f"geometric mean of {len(pairs)}: mean latency of the other system / hexgen2's"
    return Report({"hexgen2-latency": Found(ratio, how)}, (table,), bars, notes)


def compare(place: Place) -> list[Beside]:
    """HexGen-2 beside both others: what each serves when it is full, then both of a pair at one rate, the same arrivals."""
    ours = Cell("hexgen2", place.cluster, place.model, MIX, place.data, fewer=place.fewer)
    others = [replace(ours, system="hexgen"), replace(ours, system="distserve", cluster=HOMOGENEOUS)]
    plans = {one: plan_for(one, drawn_for(one)) for one in (ours, *others)}
    peaks = {one: serve(one, plan).requests_per_s for one, plan in plans.items()}
    found = []
    for other in others:
        rate = SHARE * min(peaks[ours], peaks[other])
        both = [serve(replace(one, rate_per_s=rate), plans[one]) for one in (ours, other)]
        found.append(Beside(other.system, rate, *both))
    return found
