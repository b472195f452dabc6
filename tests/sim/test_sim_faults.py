"""Devices that fail, come back or become slower in the simulator: every request still ends as it should, in the time that is left to it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_simulator import CONFIG, COST, HALF_THERE, HEADS, SPREAD, random_arrivals, simulate

from hetserve.control.config import GroupConfig, PoolConfig, StageConfig
from hetserve.control.messages import WorkerJoined, WorkerLost
from hetserve.sim.executor import Arrival
from hetserve.sim.faults import LOST, Fault


def whole(device: str) -> GroupConfig:
    return GroupConfig((StageConfig((0, 1), (PoolConfig(device, 400, HEADS),), COST),))


TWO = replace(CONFIG, groups=(whole("a"), whole("b")))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 1.5), st.booleans(), st.sampled_from([1, 2]))
def test_a_lost_groups_requests_go_to_another(seed, at_s, comes_back, depth) -> None:
    """The harness checks the controller's books after every event."""
    arrivals = random_arrivals(seed)
    faults = [Fault(at_s, "a", LOST)] + [Fault(at_s + 0.3, "a", 1.0)] * comes_back
    seen = []
    executor, _ = simulate(arrivals, replace(TWO, depth=depth), lambda event, commands: seen.append(type(event)), faults=faults)
    for arrival, outcomes in zip(arrivals, executor.outcomes, strict=True):
        assert [(one.reason, len(one.token_s)) for one in outcomes] == [("stop", arrival.output_tokens)] * arrival.n
    assert seen.count(WorkerLost) == 1 and seen.count(WorkerJoined) == comes_back


def test_nobody_left_means_errors_and_then_refusals() -> None:
    executor, _ = simulate([Arrival(0.0, 20, 300), Arrival(2.0, 20, 3)], faults=[Fault(0.5, "cpu", LOST)])
    assert [one.reason for outcomes in executor.outcomes for one in outcomes] == ["error", "rejected"]
    assert "cpu" in executor.outcomes[0][0].why


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.0, 1.0), st.booleans())
def test_a_lost_attention_worker_costs_only_time(seed, at_s, comes_back) -> None:
    arrivals = random_arrivals(seed, 12)
    faults = [Fault(at_s, "slow", LOST)] + [Fault(at_s + 0.3, "slow", 1.0)] * comes_back
    (stage,) = SPREAD.stages
    config = replace(CONFIG, groups=(GroupConfig((replace(stage, pools=tuple(replace(pool, pages=400) for pool in stage.pools)),)),))
    executor, _ = simulate(arrivals, config, policies=HALF_THERE, faults=faults)
    for arrival, outcomes in zip(arrivals, executor.outcomes, strict=True):
        assert [(one.reason, len(one.token_s)) for one in outcomes] == [("stop", arrival.output_tokens)] * arrival.n


def test_a_slower_device_takes_longer_from_then_on() -> None:
    alone, slowed = (simulate([Arrival(0.0, 16, 100)], faults=faults)[0].outcomes[0][0].token_s for faults in ((), [Fault(0.15, "cpu", 3.0)]))
    steps = [[after - before for before, after in pairwise(times)] for times in (alone, slowed)]
    begins = next(number for number, at_s in enumerate(slowed) if at_s > 0.2)
    assert steps[0][:5] == pytest.approx(steps[1][:5])
    assert steps[1][begins + 3 : begins + 10] == pytest.approx([3 * one for one in steps[0][begins + 3 : begins + 10]], rel=0.01)


def test_a_fault_that_cannot_be_is_refused() -> None:
    for at_s, slower in ((-1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="times slower"):
            Fault(at_s, "a", slower)
