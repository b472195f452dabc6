"""Hetis beside Splitwise and HexGen on its testbed: requests a second while full, and the KV that plans have room for, by model and workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hetserve.errors import ResourceError
from hetserve.reproduce.hetis_case import DATASETS, MODELS, mean_load, plan_for, requests
from hetserve.reproduce.report import Bars, Cell, Found, Report, Table
from hetserve.reproduce.setup import Setup
from hetserve.reproduce.steady import Steady, steady

OURS = "hetis"
SYSTEMS = (OURS, "splitwise as in the paper", "hexgen as in the paper", "splitwise", "hexgen")
MOST = 3000  # requests


@dataclass(frozen=True)
class Place:
    """A bar of Figs. 8 to 10."""

    system: str
    model: str
    dataset: str
    data: Path | None = None


Answers = Mapping[Place, Steady | None]


def run(setup: Setup) -> Report:
    """Throughput and KV of every system, and the largest ratio to each."""
    places = [Place(name, model, dataset, setup.data) for model in MODELS for dataset in DATASETS for name in SYSTEMS]
    answers: Answers = dict(zip(places, setup.each(_served, places), strict=True))
    speed = {place: one.requests_per_s for place, one in answers.items() if one is not None}
    room = {place: float(one.tokens_held) for place, one in answers.items() if one is not None}
    found = {
        "hetis-splitwise": _most(speed, "splitwise as in the paper"),
        "hetis-hexgen": _most(speed, "hexgen as in the paper"),
        "hetis-splitwise-planned": _most(speed, "splitwise"),
        "hetis-hexgen-planned": _most(speed, "hexgen"),
        "hetis-kv": max((_most(room, name) for name in SYSTEMS[1:3]), key=lambda one: one.number),
        "hetis-kv-planned": max((_most(room, name) for name in SYSTEMS[3:]), key=lambda one: one.number),
    }
    inputs = tuple({"model": model, **requests(dataset, model, setup.data).drawn().lengths.inputs} for model in MODELS for dataset in DATASETS)
    groups = [(model, dataset) for model in MODELS for dataset in DATASETS]
    bars = Bars(
        "requests/s",
        tuple(f"{model} {DATASETS[dataset]}" for model, dataset in groups),
        {name: [speed.get(Place(name, *group, setup.data)) for group in groups] for name in SYSTEMS},
    )
    return Report(found, (Table("Requests per second while full", "simulated", tuple(_rows(answers)), inputs),), bars, tuple(_notes(answers)))


def _served(place: Place) -> Steady | None:
    """None where the model does not fit as the paper lays the system out."""
    asked = requests(place.dataset, place.model, place.data, MOST)
    load = mean_load(replace(asked, count=1000).drawn())
    try:
        plan = plan_for(place.system, place.model, load)
    except ResourceError:
        return None
    return steady(plan, asked, load)


def _most(numbers: Mapping[Place, float], other: str) -> Found:
    """The largest ratio of ours to another's, and where."""
    ratios = {place: number / there for place, number in numbers.items() if place.system == OURS and (there := numbers.get(_beside(place, other)))}
    best = max(ratios, key=lambda place: ratios[place])
    mean = sum(ratios.values()) / len(ratios)
    others = f"{min(ratios.values()):.2f} at least, {mean:.2f} on average of {len(ratios)}"
    return Found(ratios[best], f"{best.model}, {best.dataset}: hetis / {other}; {others}")


def _beside(place: Place, system: str) -> Place:
    return Place(system, place.model, place.dataset, place.data)


def _rows(answers: Answers) -> list[Mapping[str, Cell]]:
    rows: list[Mapping[str, Cell]] = []
    for place, one in answers.items():
        ours = answers[_beside(place, OURS)]
        if one is None or ours is None:
            rows.append({"model": place.model, "workload": place.dataset, "system": place.system, "layout": "does not fit"})
            continue
        rows.append(
            {
                "model": place.model,
                "workload": place.dataset,
                "system": place.system,
                "requests/s": one.requests_per_s,
                "hetis / it": ours.requests_per_s / one.requests_per_s,
                "of predicted": one.of_predicted,
                "KV tokens": one.tokens_held,
                "KV hetis / it": ours.tokens_held / one.tokens_held,
                "slots": one.slots,
                "requests": one.requests,
                "preemptions": one.preemptions,
                "moves": one.moves,
                "layout": one.layout,
            }
        )
    return rows


def _notes(answers: Answers) -> list[str]:
    """How far simulator and planners are apart."""
    told = []
    for name in SYSTEMS:
        shares = [one.of_predicted for place, one in answers.items() if place.system == name and one is not None]
        mean = sum(shares) / len(shares)
        told.append(f"{name}: simulated / predicted by its planner {mean:.2f} on average, {min(shares):.2f} to {max(shares):.2f}.  ")
    return told
