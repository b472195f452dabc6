"""Hetis' dispatcher when what it was told of devices is a fifth off, and with other thresholds of re-dispatch; per-token latency, simulated.

The plan stays what it is, and devices take the time they take: only the dispatcher's attention lines (a, b, c, gamma, beta) are wrong.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hetserve.bench.simulated import Simulation, arrivals_of, assemble
from hetserve.control.config import ControllerConfig, PoolConfig
from hetserve.control.controller import Controller
from hetserve.errors import BenchError
from hetserve.reproduce.hetis_case import mean_load, plan_for, requests
from hetserve.reproduce.report import Bars, Cell, Found, Report, Table
from hetserve.reproduce.setup import Setup
from hetserve.reproduce.steady import expected
from hetserve.spec.plan import Plan
from hetserve.systems import policies_for

MODEL, DATASET = "Llama-2-13B", "sharegpt"
COUNT = 1500
LOAD = 0.7  # of what the planner expects: where heads are elsewhere, and nobody is saturated
OFF = 0.2  # every coefficient of every device, up or down
DRAWS = 6
THETA = 0.5
THETAS: tuple[float | None, ...] = (0.1, 0.25, THETA, 1.0, 2.0, None)


@dataclass(frozen=True)
class Way:
    """How the dispatcher is misled, and when it moves what runs."""

    theta: float | None = THETA
    off: int | None = None  # which draw of errors; None: none
    data: Path | None = None


@dataclass(frozen=True)
class Felt:
    """Seconds from arrival to the last token, over tokens, ms; and what was moved."""

    mean_ms: float
    p95_ms: float
    moves: int
    rate: float
    inputs: dict[str, Any]


def error(setup: Setup) -> Report:
    """Coefficients drawn a fifth up or down, several times."""
    ways = [Way(data=setup.data), *(Way(off=draw, data=setup.data) for draw in range(DRAWS))]
    answers = dict(zip(ways, setup.each(felt, ways), strict=True))
    right, *wrong = answers.values()
    worst = max(wrong, key=lambda one: one.mean_ms)
    rows = [_row(f"errors drawn with seed {way.off}" if way.off is not None else "right", one, right) for way, one in answers.items()]
    found = {"hetis-error": Found(worst.mean_ms / right.mean_ms, f"the worst of {DRAWS} draws")}
    bars = Bars("mean latency per token, ms", ("right", *map(str, range(DRAWS))), {"hetis": [one.mean_ms for one in answers.values()]})
    return Report(found, (_table(f"Coefficients {OFF:.0%} up or down", rows, right),), bars)


def theta(setup: Setup) -> Report:
    """Thresholds of re-dispatch."""
    ways = [Way(threshold, data=setup.data) for threshold in THETAS]
    answers = dict(zip(ways, setup.each(felt, ways), strict=True))
    by_theta = {way.theta: one for way, one in answers.items()}
    usual, never = by_theta[THETA], by_theta[None]
    best = min(one.mean_ms for one in answers.values())
    found = {
        "hetis-theta": Found(usual.mean_ms / best, "mean latency per token with Theta 0.5 over the least of the sweep"),
        "hetis-redispatch-mean": Found(never.mean_ms / usual.mean_ms, "never / Theta 0.5"),
        "hetis-redispatch-p95": Found(never.p95_ms / usual.p95_ms, "never / Theta 0.5"),
    }
    rows = [_row("never" if value is None else f"Theta {value:g}", one, usual) for value, one in by_theta.items()]
    names = tuple("never" if value is None else f"{value:g}" for value in by_theta)
    bars = Bars("mean latency per token, ms", names, {"hetis": [one.mean_ms for one in by_theta.values()]})
    return Report(found, (_table("Thresholds", rows, usual),), bars)


def felt(way: Way) -> Felt:
    """Simulates Hetis' plan at LOAD of what it can serve.

    Raises:
        BenchError: some requests were not served.
    """
    asked = requests(DATASET, MODEL, way.data, COUNT)
    plan = plan_for("hetis", MODEL, mean_load(asked.drawn()))
    plan = replace(plan, online=replace(plan.online, theta=way.theta))
    rate = LOAD * expected(plan)
    drawn = asked.arriving(rate)
    done = misled(plan, assemble(plan, arrivals_of(drawn)), way.off)
    done.run()
    records = done.records()
    if not all(one.ok for one in records):
        raise BenchError(f"{sum(not one.ok for one in records)} of {len(records)} requests were not served")
    per_token = [1e3 * one.e2el_s / one.output_tokens for one in records]
    moves = int(done.controller.counts()["moves_total"])
    return Felt(float(np.mean(per_token)), float(np.percentile(per_token, 95)), moves, rate, dict(drawn.lengths.inputs) | {"requests_per_s": rate})


def misled(plan: Plan, right: Simulation, draw: int | None) -> Simulation:
    """The same devices under a controller whose attention lines are wrong."""
    if draw is None:
        return right
    config = wrong(right.config, draw)
    return replace(right, config=config, controller=Controller(config, policies_for(plan.system, plan.online)))


def wrong(config: ControllerConfig, draw: int) -> ControllerConfig:
    """Every device's coefficients OFF up or down, by chance."""
    chance = random.Random(draw)

    def off(pool: PoolConfig) -> PoolConfig:
        head, token, fixed = (1 + OFF if chance.random() < 0.5 else 1 - OFF for _ in range(3))
        cost = pool.heads
        return replace(pool, heads=replace(cost, head_s=cost.head_s * head, token_s=cost.token_s * token, fixed_s=cost.fixed_s * fixed))

    groups = tuple(
        replace(group, stages=tuple(replace(stage, pools=tuple(map(off, stage.pools))) for stage in group.stages)) for group in config.groups
    )
    return replace(config, groups=groups)


def _row(name: str, one: Felt, usual: Felt) -> Mapping[str, Cell]:
    return {
        "dispatcher": name,
        "mean per token, ms": one.mean_ms,
        "P95 per token, ms": one.p95_ms,
        "mean, of the usual": one.mean_ms / usual.mean_ms,
        "moves": one.moves,
    }


def _table(title: str, rows: list[Mapping[str, Cell]], usual: Felt) -> Table:
    return Table(f"{title}: {MODEL}, {DATASET} at {usual.rate:.1f} requests/s", "simulated", tuple(rows), (usual.inputs,))
