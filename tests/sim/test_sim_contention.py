"""Pools of a simulated stage slow each other as soon as two of them hold something, and one that holds everything is not slowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hetserve.control.messages import NO_INTS, NO_PAGES, Replace, RunStep, Sampling, Start
from hetserve.cost.costs import HeadCost
from hetserve.cost.curve import NOTHING
from hetserve.cost.roofline import StepCost
from hetserve.sim.device import SimGroup, SimStage

DENSE_S = 2e-3
STEP = RunStep(0, 0, NO_INTS, (), (), NO_INTS, NO_INTS, NO_PAGES, NO_INTS, NO_INTS, NO_INTS, NO_INTS, NO_INTS, 0.0)
START = Start(0, 0, 0, np.ones(101, np.int32), 101, 100, Sampling())
HEADS = (HeadCost(1e-4, 1e-6, 0.0, "test", 1.4), HeadCost(2e-4, 1e-6, 1e-4, "test", 1.5), HeadCost(1e-4, 1e-6, 1e-4, "test", 2.0))


@pytest.mark.parametrize(
    ("away", "slowest_s"),
    [
        ([], 4 * 1e-4 + 4 * 100e-6),
        ([1], 1.4 * (3 * 1e-4 + 3 * 100e-6)),
        ([1, 1, 1], 1.5 * (3 * 2e-4 + 3 * 100e-6) + 1e-4),
        ([1, 1, 1, 1], 4 * 2e-4 + 4 * 100e-6 + 1e-4),
        ([1, 2, 2], 2.0 * (2 * 1e-4 + 2 * 100e-6) + 1e-4),
    ],
)
def test_a_step_takes_what_its_slowest_pool_takes(away, slowest_s) -> None:
    group = SimGroup(1, [SimStage(StepCost(DENSE_S, NOTHING, NOTHING, 0.0, 0.0, 0.0, "test"), HEADS, ("a", "b", "c"))], 4, {0: 50})
    dealt = Replace(0, np.arange(len(away), dtype=np.int32), np.array(away, np.int32), NO_PAGES)
    (parts_s,) = group.admit(replace(STEP, starts=(START,), replaces=(dealt,), joins=np.zeros(1, np.int32))).parts_s
    assert parts_s == pytest.approx((slowest_s, DENSE_S, 0.0))
    assert np.flatnonzero(group.standing).tolist() == [0]
