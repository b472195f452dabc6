"""Throughput of full plans: only what is between filling up and running empty counts, group by group."""

from __future__ import annotations

import numpy as np
import pytest

from hetserve.control.messages import Finish, StepDone, Tokens
from hetserve.reproduce.hetis_case import LLAMA_70B, mean_load, plan_for, requests
from hetserve.reproduce.hetis_split import run as split
from hetserve.reproduce.setup import Setup
from hetserve.reproduce.steady import Full, at_once, expected, layout, steady, tokens_held

NOBODY = np.zeros(0, np.int32)


def step(at_s: float, group: int, tokens: int, over: int) -> tuple[StepDone, list[Tokens | Finish]]:
    requests = tuple(range(tokens))
    told = Tokens(0, requests, (0,) * tokens, (1,) * tokens, requests)
    return StepDone(at_s, 0, 0, group, NOBODY, 0.1), [told, *(Finish(number, 0, "stop", 1) for number in range(over))]


def test_only_the_time_while_a_group_is_full_counts() -> None:
    """Ten tokens a second from a quick group while it is full, one from a slow one; neither's start or end counts."""
    watch = Full()
    for at_s in range(1, 101):
        watch(*step(float(at_s), 0, 10 if 20 <= at_s <= 70 else 1, 1))
    for at_s in range(10, 1010, 10):
        watch(*step(float(at_s), 1, 10, 1))
    assert watch.tokens_per_s() == pytest.approx(11.0, rel=0.05)


def test_a_full_plan_serves_about_what_its_planner_expects() -> None:
    """The paper's HexGen and long prompts, few requests: estimates of deep pipelines are low, but of the same order; and it says what it is."""
    asked = requests("longbench", LLAMA_70B, None, 300)
    load = mean_load(asked.drawn())
    plan = plan_for("hexgen as in the paper", LLAMA_70B, load)
    assert plan.limits.max_seqs == 1024 and layout(plan).count("|") == 3
    found = steady(plan, asked, load)
    assert found.predicted == expected(plan) and 0.8 < found.of_predicted < 1.8
    (group,) = plan.groups
    assert at_once(plan, group, load) == pytest.approx(min(1024, tokens_held(plan, group) / (load.input_tokens + load.output_tokens / 2)))


def test_head_wise_transfers_save_what_the_formulas_say() -> None:
    found = split(Setup()).found
    assert found["hetis-split-four"].number == pytest.approx(512 / 144)
    assert 1 < found["hetis-split-one"].number < 128 / 28.8  # a message's fixed cost makes less of the ratio of bytes, 4.44
