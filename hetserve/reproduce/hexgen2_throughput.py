"""HexGen-2 beside DistServe on eight H100 of the same price, beside HexGen on its own clusters, and on a cluster at 70 % of the price: output tokens
a second while the plans are full, by class of requests and model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product

from hetserve.reproduce.hexgen2_case import CHEAPER, CLASSES, HETEROGENEOUS, HOMOGENEOUS, MODELS, Cell, Served, serve
from hetserve.reproduce.report import Bars, Found, Report, Row, Table
from hetserve.reproduce.setup import Setup

Answers = Mapping[Cell, Served]
Pairs = Mapping[tuple[Cell, str], Cell]  # HexGen-2's cell and the other system -> the other's cell
Ratios = Mapping[tuple[Cell, str], float]


def llama(setup: Setup) -> Report:
    return beside_others("Llama-2-70B", "", setup)


def opt(setup: Setup) -> Report:
    return beside_others("OPT-30B", "-opt", setup)


def beside_others(model: str, ending: str, setup: Setup) -> Report:
    """Each of the four unlike clusters against eight H100, and both systems on it; claims hexgen2-OTHER-most and -mean with that ending."""
    ours = [Cell("hexgen2", cluster, model, only, setup.data) for cluster, only in product(HETEROGENEOUS, CLASSES)]
    pairs = {(one, "distserve"): replace(one, system="distserve", cluster=HOMOGENEOUS) for one in ours}
    pairs |= {(one, "hexgen"): replace(one, system="hexgen") for one in ours}
    return _report(setup, pairs, {"distserve": "hexgen2-distserve", "hexgen": "hexgen2-hexgen"}, ending, {"distserve": 1.3, "hexgen": 1.4})


def cheaper(setup: Setup) -> Report:
    """An unlike cluster for 70 % of what eight H100 cost."""
    ours = [Cell("hexgen2", CHEAPER, *where, setup.data) for where in product(MODELS, CLASSES)]
    pairs = {(one, "distserve"): replace(one, system="distserve", cluster=HOMOGENEOUS) for one in ours}
    return _report(setup, pairs, {"distserve": "hexgen2-budget"}, "", {"distserve": 1.0})


def _report(setup: Setup, pairs: Pairs, names: Mapping[str, str], ending: str, paper: Mapping[str, float]) -> Report:
    """Claims NAME-most and NAME-mean of each other system from the ratios of all pairs with it."""
    cells = list(dict.fromkeys([*(one for one, _ in pairs), *pairs.values()]))
    answers: Answers = dict(zip(cells, setup.each(serve, cells), strict=True))
    ratios = {pair: answers[pair[0]].tokens_per_s / answers[other].tokens_per_s for pair, other in pairs.items()}
    found = {}
    for other, name in names.items():
        mine = {one: ratio for (one, system), ratio in ratios.items() if system == other}
        best = max(mine, key=lambda one: mine[one])
        found[f"{name}-most{ending}"] = Found(mine[best], f"{best.model}, {best.only} on {best.cluster}: hexgen2 / {other}")
        found[f"{name}-mean{ending}"] = Found(mean(mine.values()), f"geometric mean of {len(mine)}: hexgen2 / {other}")
    rows: list[Row] = [
        {
            "model": one.model,
            "class": one.only,
            "cluster": one.cluster,
            "$/h": answers[one].dollars_per_hour,
            "beside": other,
            "hexgen2 tokens/s": answers[one].tokens_per_s,
            "the other's": answers[against].tokens_per_s,
            "ratio": ratios[one, other],
            "hexgen2 of predicted": answers[one].requests_per_s / answers[one].predicted,
            "the other of predicted": answers[against].requests_per_s / answers[against].predicted,
            "hexgen2's groups": answers[one].groups,
            "the other's groups": answers[against].groups,
        }
        for (one, other), against in pairs.items()
    ]
    inputs = {(one.model, one.only): answers[one].inputs | {"model": one.model} for one, _ in pairs}
    table = Table("Output tokens per second while full", "simulated", tuple(rows), tuple(inputs.values()))
    return Report(found, (table,), _bars(ratios, paper), _notes(answers))


def _bars(ratios: Ratios, paper: Mapping[str, float]) -> Bars:
    """A group of bars for each model and class, a series for each cluster and other system."""
    groups = list(dict.fromkeys((one.model, one.only) for one, _ in ratios))
    series = list(dict.fromkeys((one.cluster, other) for one, other in ratios))
    places = {(one.cluster, other, one.model, one.only): ratio for (one, other), ratio in ratios.items()}
    heights = {f"{cluster} / {other}": [places.get((cluster, other, *group)) for group in groups] for cluster, other in series}
    return Bars("output tokens/s, hexgen2 / other", tuple(f"{model} {only}" for model, only in groups), heights, paper)


def mean(ratios: Iterable[float]) -> float:
    """The geometric mean."""
    logs = [math.log(one) for one in ratios]
    return math.exp(sum(logs) / len(logs))


def _notes(answers: Answers) -> tuple[str, ...]:
    """How far simulator and planners are apart."""
    told = []
    for system in dict.fromkeys(one.system for one in answers):
        shares = [served.requests_per_s / served.predicted for cell, served in answers.items() if cell.system == system]
        told.append(f"{system}: simulated / predicted by its planner {mean(shares):.2f} on average, {min(shares):.2f} to {max(shares):.2f}")
    return tuple(told)
