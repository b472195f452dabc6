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
Pairs = Mapping[Cell, Cell]  # HexGen-2's cell -> what it is held against


def against_distserve(setup: Setup) -> Report:
    """Four unlike clusters, each against eight H100."""
    ours = [Cell("hexgen2", *where, setup.data) for where in product(HETEROGENEOUS, MODELS, CLASSES)]
    pairs = {one: replace(one, system="distserve", cluster=HOMOGENEOUS) for one in ours}
    return _report(setup, pairs, "hexgen2-distserve", {"on average": 1.3, "up to": 2.0})


def against_hexgen(setup: Setup) -> Report:
    """Both on each of the four unlike clusters."""
    ours = [Cell("hexgen2", *where, setup.data) for where in product(HETEROGENEOUS, MODELS, CLASSES)]
    return _report(setup, {one: replace(one, system="hexgen") for one in ours}, "hexgen2-hexgen", {"on average": 1.4, "up to": 1.5})


def cheaper(setup: Setup) -> Report:
    """An unlike cluster for 70 % of what eight H100 cost."""
    ours = [Cell("hexgen2", CHEAPER, *where, setup.data) for where in product(MODELS, CLASSES)]
    pairs = {one: replace(one, system="distserve", cluster=HOMOGENEOUS) for one in ours}
    return _report(setup, pairs, "hexgen2-budget", {"on average": 1.0, "up to": 1.3})


def _report(setup: Setup, pairs: Pairs, name: str, paper: Mapping[str, float]) -> Report:
    """Claims NAME-most and NAME-mean from the ratios of all pairs."""
    cells = list(dict.fromkeys([*pairs, *pairs.values()]))
    answers: Answers = dict(zip(cells, setup.each(serve, cells), strict=True))
    ratios = {one: answers[one].tokens_per_s / answers[other].tokens_per_s for one, other in pairs.items()}
    best = max(ratios, key=lambda one: ratios[one])
    other = pairs[best].system
    found = {
        f"{name}-most": Found(ratios[best], f"{best.model}, {best.only} on {best.cluster}: hexgen2 / {other}"),
        f"{name}-mean": Found(mean(ratios.values()), f"geometric mean of {len(ratios)}: hexgen2 / {other}"),
    }
    rows: list[Row] = [
        {
            "model": one.model,
            "class": one.only,
            "cluster": one.cluster,
            "$/h": answers[one].dollars_per_hour,
            "hexgen2 tokens/s": answers[one].tokens_per_s,
            f"{against.system} tokens/s": answers[against].tokens_per_s,
            "ratio": ratios[one],
            "hexgen2 of predicted": answers[one].requests_per_s / answers[one].predicted,
            f"{against.system} of predicted": answers[against].requests_per_s / answers[against].predicted,
            "hexgen2's groups": answers[one].groups,
            f"{against.system}'s groups": answers[against].groups,
        }
        for one, against in pairs.items()
    ]
    inputs = {(one.model, one.only): answers[one].inputs | {"model": one.model} for one in pairs}
    groups = list(dict.fromkeys((one.model, one.only) for one in pairs))
    clusters = list(dict.fromkeys(one.cluster for one in pairs))
    by_place = {(one.cluster, one.model, one.only): ratio for one, ratio in ratios.items()}
    bars = Bars(
        f"output tokens/s, hexgen2 / {other}",
        tuple(f"{model} {only}" for model, only in groups),
        {cluster: [by_place.get((cluster, *group)) for group in groups] for cluster in clusters},
        paper,
    )
    table = Table(f"Output tokens per second while full, hexgen2 and {other}", "simulated", tuple(rows), tuple(inputs.values()))
    return Report(found, (table,), bars, _notes(answers))


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
