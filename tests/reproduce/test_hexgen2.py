"""HexGen-2's experiments with stand-ins for plans and simulations: who is held against whom, and what is made of the numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hetserve.errors import BenchError
from hetserve.reproduce import hexgen2_latency, hexgen2_search, hexgen2_throughput
from hetserve.reproduce.claims import claims_of
from hetserve.reproduce.hexgen2_case import HETEROGENEOUS, HOMOGENEOUS, MIX, MODELS, Cell, Served, full_tokens_per_s, serve
from hetserve.reproduce.hexgen2_search import EFFORTS, WHOLE, Look, Looked
from hetserve.reproduce.setup import Setup
from hetserve.reproduce.table import EXPERIMENTS

CELL = Cell("distserve", HOMOGENEOUS, "OPT-30B", "LPLD", fewer=8)


def served(tokens_per_s: float, latency_s: float = 1.0) -> Served:
    return Served(tokens_per_s, tokens_per_s / 100, tokens_per_s / 80, latency_s, 0.1, 29.52, "prefill 1, decode 2", {"dataset": "azure-conv"})


def done(ends_s: list[float], each: int) -> SimpleNamespace:
    """Requests that end at these times after `each` tokens, one a tenth of a second."""
    outcomes = [[SimpleNamespace(token_s=[end_s - 0.1 * left for left in reversed(range(each))])] for end_s in ends_s]
    return SimpleNamespace(executor=SimpleNamespace(outcomes=outcomes))


def test_neither_filling_up_nor_running_empty_is_counted() -> None:
    steady = [float(second) for second in range(10, 111)]
    assert full_tokens_per_s(done(steady, 3)) == pytest.approx(3.0)
    slow_ends = [*[-1000.0 + second for second in range(5)], *steady, *[1000.0 + second for second in range(5)]]
    assert full_tokens_per_s(done(slow_ends, 3)) == pytest.approx(3.0)
    with pytest.raises(BenchError, match="all end at once"):
        full_tokens_per_s(done([1.0] * 9, 1))


def test_a_cell_is_planned_and_simulated() -> None:
    """The planner's own expectation is near what comes out; at a rate, tokens come as requests do."""
    full = serve(CELL)
    assert full.dollars_per_hour == pytest.approx(29.52) and full.inputs["class"] == "LPLD" and full.groups.count("prefill") == 1
    assert 0.5 < full.requests_per_s / full.predicted < 1.3
    slow = serve(replace(CELL, rate_per_s=full.requests_per_s / 20))
    assert slow.tokens_per_s < full.tokens_per_s / 10 and slow.latency_s < full.latency_s


@pytest.mark.parametrize(("name", "cells"), [("hexgen2-throughput", 36), ("hexgen2-throughput-opt", 36), ("hexgen2-budget", 16)])
def test_ratios_of_every_pair(monkeypatch: pytest.MonkeyPatch, name: str, cells: int) -> None:
    """HexGen-2 serves 200 everywhere but 400 in one place; DistServe serves 100, HexGen 50."""
    asked: list[Cell] = []
    others = {"distserve": 100.0, "hexgen": 50.0}

    def stand_in(cell: Cell) -> Served:
        asked.append(cell)
        return served(others.get(cell.system, 400.0 if (cell.only, cell.cluster[-1]) in (("LPHD", "1"), ("LPHD", "5")) else 200.0))

    monkeypatch.setattr(hexgen2_throughput, "serve", stand_in)
    report = EXPERIMENTS[name](Setup())
    assert len(asked) == len(set(asked)) == cells
    assert all((one.cluster == HOMOGENEOUS) == (one.system == "distserve") for one in asked)
    assert report.found.keys() == {claim.name for claim in claims_of(name)}
    for claim, found in report.found.items():
        base = 100.0 if "hexgen2-hexgen" not in claim else 50.0
        extra = 2.0 ** (1 / 16) if name != "hexgen2-budget" else 2.0 ** (2 / 8)
        assert found.number == pytest.approx(400.0 / base if "-most" in claim else 200.0 / base * extra)
        assert "LPHD on hexgen2-het" in found.how or "-mean" in claim
    assert report.bars is not None and all(len(heights) == len(report.bars.groups) for heights in report.bars.series.values())


def test_latency_is_compared_at_three_quarters_of_the_weaker_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks, latency_s = {"hexgen2": 1000.0, "hexgen": 400.0, "distserve": 2000.0}, {"hexgen2": 2.0, "hexgen": 6.0, "distserve": 1.0}
    rates: list[tuple[str, float]] = []

    def stand_in(cell: Cell, plan: str) -> Served:
        assert plan == f"plan of {cell.system}" and cell.only == MIX
        if math.isfinite(cell.rate_per_s):
            rates.append((cell.system, cell.rate_per_s))
        return served(peaks[cell.system], latency_s[cell.system])

    monkeypatch.setattr(hexgen2_latency, "serve", stand_in)
    monkeypatch.setattr(hexgen2_latency, "drawn_for", lambda cell: None)
    monkeypatch.setattr(hexgen2_latency, "plan_for", lambda cell, drawn: f"plan of {cell.system}")
    report = hexgen2_latency.run(Setup())
    assert rates[:4] == [("hexgen2", 3.0), ("hexgen", 3.0), ("hexgen2", 7.5), ("distserve", 7.5)]
    assert len(report.tables[0].rows) == 2 * len(HETEROGENEOUS) * len(MODELS)
    assert report.found["hexgen2-latency"].number == pytest.approx(math.sqrt(3.0 * 0.5))


def test_searches_are_compared_at_equal_effort() -> None:
    """Medians of seeds, then the mean over classes; the time is that of guided searches with all of the effort."""
    found = {}
    for only in ("HPLD", "LPLD"):
        for effort in EFFORTS:
            for method, rate in (("guided", 9.0), ("random", 6.0 if effort == WHOLE else 3.0), ("genetic", 4.5)):
                for seed, chance in enumerate((0.1, 1.0, 1.0)):
                    found[Look(only, method, effort, seed, None)] = Looked(rate * chance, 7.0 if (method, effort) == ("guided", WHOLE) else 99.0)
    report = hexgen2_search.compared(found)
    numbers = {name: one.number for name, one in report.found.items()}
    assert numbers == pytest.approx({"hexgen2-guided-random": 1.5, "hexgen2-guided-genetic": 2.0, "hexgen2-converged": 7.0})
    assert report.found.keys() == {claim.name for claim in claims_of("hexgen2-convergence")}
    assert "guided / random at effort 300: 3.000" in report.notes


def test_one_look_is_one_search() -> None:
    short, longer = (hexgen2_search.look(Look("HPLD", "guided", effort, 0, None)) for effort in (1, 200))
    assert 0 <= short.requests_per_s <= longer.requests_per_s and longer.requests_per_s > 0 and longer.cpu_s > 0


def test_planning_times_are_held_against_both_the_paper_and_our_aim() -> None:
    report = hexgen2_search.timed({20: 5.0, 64: 10.0, 160: 20.0, 320: 80.0})
    assert report.found.keys() == {claim.name for claim in claims_of("hexgen2-scheduling")}
    assert report.found["hexgen2-plan-320"].number == report.found["hexgen2-schedule-320"].number == 80.0
    assert "power of 1.00" in report.notes[0]
    assert len(hexgen2_search.cluster_of(64).devices) == 64 and hexgen2_search.cluster_of(20).name == HETEROGENEOUS[0]
