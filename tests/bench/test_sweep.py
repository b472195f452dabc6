"""Knees: found where output stops keeping up with input, on made-up systems whose capacity is known, and in a simulated one."""

from __future__ import annotations

import math

import pytest
from test_simulated import planned

from hetserve.bench.simulated import assemble, summary
from hetserve.bench.sweep import WITHIN, find_knee, keeps_up, knee, too_short
from hetserve.errors import BenchError
from hetserve.sim.executor import Arrival


def made_up(rate: float, capacity: float, prompts: int = 1000, takes_s: float = 0.1) -> dict:
    """What a run of a system that serves `capacity` requests per second says."""
    share = min(1.0, capacity / rate)
    return {
        "request_rate": rate if math.isfinite(rate) else "inf",
        "request_throughput": min(capacity, rate),
        "output_throughput": 10 * min(capacity, rate),
        "output_share": share if math.isfinite(rate) else None,
        "saturated": share < 0.9 if math.isfinite(rate) else None,
        "completed": prompts,
        "num_prompts": prompts,
        "median_ttft_ms": 5.0,
        "median_e2el_ms": 5.0 + 1e3 * takes_s,
    }


@pytest.mark.parametrize("capacity", [0.01, 3.0, 5000.0])
def test_the_knee_is_found_wherever_it_is(capacity: float) -> None:
    asked = []

    def at(rate: float) -> dict:
        asked.append(rate)
        return made_up(rate, capacity, prompts=10**7)

    found = knee(find_knee(at))
    assert found is not None and found["request_rate"] <= capacity / 0.95 < found["above"] <= found["request_rate"] * (1 + WITHIN)
    assert len(asked) < 12 and not found["too_short"] and found["output_throughput"] == 10 * min(capacity, found["request_rate"])


def test_runs_there_are_already_narrow_the_search() -> None:
    asked = []

    def at(rate: float) -> dict:
        asked.append(rate)
        return made_up(rate, 3.0)

    runs = find_knee(at, [made_up(rate, 3.0) for rate in (1.0, 2.9, 3.3, 8.0)])
    assert asked and all(2.9 < rate < 3.3 for rate in asked) and [run["request_rate"] for run in runs] == sorted(run["request_rate"] for run in runs)


def test_the_knee_of_a_sweep() -> None:
    swept = [made_up(rate, 3.0) for rate in (4.0, 1.0, 2.0)]
    found = knee(swept)
    assert found is not None and (found["request_rate"], found["above"]) == (2.0, 4.0)
    low, high = knee(swept[1:]), knee([made_up(rate, 3.0) for rate in (8.0, 4.0)])
    assert low is not None and (low["request_rate"], low["above"]) == (2.0, None)
    assert high is not None and (high["request_rate"], high["above"], high["output_throughput"]) == (None, 4.0, None)
    assert knee([made_up(math.inf, 3.0)]) is None


def test_a_run_that_is_over_before_anything_can_pile_up_does_not_count() -> None:
    short = made_up(2.0, 3.0, prompts=20, takes_s=3.0)
    assert too_short(short) and keeps_up(short) is False and keeps_up(made_up(2.0, 3.0, prompts=30, takes_s=3.0)) is True
    found = knee([made_up(1.0, 3.0), short])
    assert found is not None and found["request_rate"] == 1.0 and found["too_short"]


def test_a_knee_that_is_nowhere_is_said() -> None:
    with pytest.raises(BenchError, match="too few to tell"):
        find_knee(lambda rate: made_up(rate, 3.0) | {"saturated": None})
    with pytest.raises(BenchError, match="no rate keeps up"):
        find_knee(lambda rate: made_up(rate, 3.0) | {"output_share": 0.1})
    with pytest.raises(BenchError, match="every rate keeps up"):
        find_knee(lambda rate: made_up(rate, math.inf, prompts=10**9) | {"request_throughput": 1.0})


def test_a_simulated_system_has_its_knee_near_what_it_completes_at_once() -> None:
    plan = planned()

    def at(rate: float) -> dict:
        gap_s = 0.0 if math.isinf(rate) else 1 / rate
        done = assemble(plan, [Arrival(gap_s * number, 60, 8) for number in range(150)])
        done.run()
        return summary(done, rate)

    found = knee(find_knee(at))
    assert found is not None and found["request_rate"] == pytest.approx(at(math.inf)["request_throughput"], rel=0.15)
