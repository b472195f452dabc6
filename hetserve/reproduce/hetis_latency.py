"""P95 of TTFT and TPOT at rates that saturate nobody: Hetis, Splitwise and HexGen, Llama-70B, three workloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetserve.bench.simulated import arrivals_of, assemble, summary
from hetserve.bench.sweep import KEEPS_UP
from hetserve.reproduce.hetis_case import DATASETS, LLAMA_70B, mean_load, plan_for, requests
from hetserve.reproduce.report import Bars, Cell, Found, Report, Table
from hetserve.reproduce.setup import Setup
from hetserve.reproduce.steady import layout

OURS = "hetis"
OTHERS = ("splitwise", "hexgen as in the paper", "hexgen")  # the paper's Splitwise does not hold this model
RATES = {"sharegpt": 1.5, "humaneval": 6.0, "longbench": 0.8}  # requests per second; the paper prints no unit
COUNT = 600


@dataclass(frozen=True)
class Place:
    system: str
    dataset: str
    data: Path | None = None


@dataclass(frozen=True)
class Felt:
    """By those who wait, ms."""

    ttft_ms: float
    tpot_ms: float
    saturated: bool  # output fell behind arrivals (bench.sweep's measure), or later requests waited ever longer for their first token
    layout: str
    inputs: dict[str, Any]


def run(setup: Setup) -> Report:
    places = [Place(name, dataset, setup.data) for dataset in DATASETS for name in (OURS, *OTHERS)]
    answers = dict(zip(places, setup.each(felt, places), strict=True))
    found = {
        "hetis-ttft-splitwise": _most(answers, "ttft_ms", ("splitwise",)),
        "hetis-ttft-hexgen": _most(answers, "ttft_ms", ("hexgen as in the paper",)),
        "hetis-tpot": _most(answers, "tpot_ms", ("splitwise", "hexgen as in the paper")),
        "hetis-ttft-planned": _most(answers, "ttft_ms", ("hexgen",)),
        "hetis-tpot-planned": _most(answers, "tpot_ms", ("hexgen",)),
    }
    rows: list[Mapping[str, Cell]] = [
        {
            "workload": place.dataset,
            "requests/s": RATES[place.dataset],
            "system": place.system,
            "P95 TTFT, ms": one.ttft_ms,
            "it / hetis ": one.ttft_ms / answers[Place(OURS, place.dataset, place.data)].ttft_ms,
            "P95 TPOT, ms": one.tpot_ms,
            "it / hetis": one.tpot_ms / answers[Place(OURS, place.dataset, place.data)].tpot_ms,
            "saturated": "yes" if one.saturated else "no",
            "layout": one.layout,
        }
        for place, one in answers.items()
    ]
    inputs = tuple(answers[Place(OURS, dataset, setup.data)].inputs for dataset in DATASETS)
    series = {name: [answers[Place(name, dataset, setup.data)].tpot_ms for dataset in DATASETS] for name in (OURS, *OTHERS)}
    bars = Bars("P95 TPOT, ms", tuple(DATASETS.values()), series)
    return Report(found, (Table(f"At a low rate, {LLAMA_70B}", "simulated", tuple(rows), inputs),), bars)


def felt(place: Place) -> Felt:
    """What requests at the paper's rate wait for."""
    asked = requests(place.dataset, LLAMA_70B, place.data, COUNT)
    rate = RATES[place.dataset]
    drawn = asked.arriving(rate)
    plan = plan_for(place.system, LLAMA_70B, mean_load(drawn))
    done = assemble(plan, arrivals_of(drawn))
    done.run()
    result = summary(done, rate, percentiles=(95.0,))
    return Felt(
        result["p95_ttft_ms"],
        result["p95_tpot_ms"],
        bool(result["saturated"]) or result["output_share"] < KEEPS_UP,
        layout(plan),
        dict(drawn.lengths.inputs) | {"requests_per_s": rate},
    )


def _most(answers: Mapping[Place, Felt], what: str, others: tuple[str, ...]) -> Found:
    """The largest ratio of another's number to ours, of workloads that saturate neither, as in the paper."""
    ratios = {}
    for place, one in answers.items():
        for name in others if place.system == OURS else ():
            other = answers[Place(name, place.dataset, place.data)]
            if not one.saturated and not other.saturated:
                ratios[place.dataset, name] = getattr(other, what) / getattr(one, what)
    if not ratios:
        return Found(0.0, "every workload saturates ours or another")
    dataset, name = max(ratios, key=lambda key: ratios[key])
    return Found(ratios[dataset, name], f"{dataset}: {name} / hetis; {min(ratios.values()):.2f} at least, of {len(ratios)} that saturate neither")
