"""The simulator: same run every time, answers exactly as long as they should be, and time that adds up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetserve.control.codec import MESSAGES
from hetserve.control.config import ControllerConfig, GroupConfig, PoolConfig, StageConfig
from hetserve.control.controller import Controller
from hetserve.control.messages import MoveDone, MoveKv
from hetserve.cost.costs import HeadCost
from hetserve.cost.curve import Curve
from hetserve.cost.roofline import StepCost
from hetserve.drive import drive
from hetserve.sim.device import SimStage
from hetserve.sim.executor import Arrival, SimExecutor
from hetserve.sim.links import Way
from hetserve.systems import UNIFORM

COST = StepCost(2e-3, Curve.floor(3e-3, 1e-4), Curve((1.0,), (1e-6,)), attend_s=0.0, context_s=1e-7, pair_s=1e-8, source="test")
HEADS = HeadCost(0.0, COST.context_s / 4, 0.0, "test")  # of a pool with all four KV heads: what COST says of the context


def group(pages: int) -> GroupConfig:
    return GroupConfig((StageConfig((0, 1), (PoolConfig("cpu", pages, HEADS),), COST),))


CONFIG = ControllerConfig("uniform", "none", (group(4 * 100),), 4, 16, 512, 16, 64, 2, 1000)


def simulate(arrivals, config=CONFIG, observe=None, move_s=1e-3, policies=UNIFORM, faults=()) -> tuple[SimExecutor, Controller]:
    stages = [
        [SimStage(stage.cost, tuple(pool.heads for pool in stage.pools), tuple(pool.device for pool in stage.pools)) for stage in group.stages]
        for group in config.groups
    ]
    limits = (config.max_seqs, config.max_model_len)
    wire = {"wire": 10**6 / move_s}
    executor = SimExecutor(arrivals, stages, config.kv_heads, lambda move: (Way(0.0, ("wire",)), 10**6), wire, *limits, faults=faults)
    controller = Controller(config, policies)

    def check(event, commands) -> None:
        controller.check()
        if observe is not None:
            observe(event, commands)

    drive(controller, executor, check)
    return executor, controller


def random_arrivals(seed: int, count: int = 30) -> list[Arrival]:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(0.02, count))
    draws = zip(times, rng.integers(1, 200, count), rng.integers(1, 60, count), rng.integers(1, 3, count), strict=True)
    return [Arrival(float(at_s), int(prompt), int(output), int(n)) for at_s, prompt, output, n in draws]


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 2]), st.sampled_from([60, 400]))
def test_a_run_repeats_byte_for_byte(seed, depth, pages) -> None:
    config = replace(CONFIG, depth=depth, groups=(group(pages),))
    arrivals = random_arrivals(seed)
    runs = []
    for _ in range(2):
        raw: list[bytes] = []
        simulate(arrivals, config, lambda event, commands, raw=raw: raw.extend(map(MESSAGES.encode, (event, *commands))))
        runs.append(b"".join(raw))
    assert runs[0] == runs[1]


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.sampled_from([1, 2]))
def test_every_answer_has_its_length_whatever_the_schedule(seed, depth) -> None:
    """Also when pages run out and sequences start over."""
    config = replace(CONFIG, depth=depth, groups=(group(4 * 18),))
    arrivals = random_arrivals(seed)
    executor, _ = simulate(arrivals, config)
    for arrival, outcomes in zip(arrivals, executor.outcomes, strict=True):
        for outcome in outcomes:
            assert (outcome.reason, len(outcome.token_s)) == ("stop", arrival.output_tokens)
            assert arrival.at_s < outcome.token_s[0] and outcome.token_s == sorted(outcome.token_s)


def test_answers_are_cut_at_the_models_length() -> None:
    executor, _ = simulate([Arrival(0.0, 500, 100)])
    assert [(one.reason, len(one.token_s)) for one in executor.outcomes[0]] == [("length", 12)]
    executor, _ = simulate([Arrival(0.0, 600, 100)])
    assert executor.outcomes[0][0].reason == "rejected" and executor.ended == 1


def test_one_request_takes_the_time_the_cost_says() -> None:
    """Two chunks of prefill, then one step a token; with two steps in flight no time is lost between them, and one step is in vain: the one
    on its way when the answer turns out to be over."""
    executor, _ = simulate([Arrival(1.0, 100, 5)], replace(CONFIG, max_step_tokens=64))
    first = COST.step_s(64, 0, 0, 64 * 32)
    second = COST.step_s(36, 1, 0, 36 * (64 + 18))
    decode = [COST.step_s(1, 1, context, 0) for context in range(100, 104)]
    np.testing.assert_allclose(executor.outcomes[0][0].token_s, 1.0 + np.cumsum([first + second, *decode]))
    np.testing.assert_allclose(executor.groups[0].busy_s, [first + second + sum(decode) + COST.step_s(1, 1, 104, 0)])


def test_the_controller_predicts_what_the_simulator_takes() -> None:
    """Both ask the same cost; what differs is only who counts."""
    predicted, took = {}, {}

    def observe(event, commands) -> None:
        for command in commands:
            if hasattr(command, "predicted_s"):
                predicted[command.step] = command.predicted_s
        if hasattr(event, "step_s"):
            took[event.step] = event.step_s

    simulate(random_arrivals(3), observe=observe)
    assert predicted.keys() == took.keys() and len(took) > 50
    np.testing.assert_allclose([predicted[step] for step in took], list(took.values()))


def test_no_policy_or_request_tells_the_length() -> None:
    """Two workloads that differ only in how long the last answer is run alike until that answer's shorter end."""
    arrivals = [Arrival(0.0, 50, 40), Arrival(0.1, 60, 20)]
    longer = [arrivals[0], replace(arrivals[1], output_tokens=90)]
    short, long = [], []
    simulate(arrivals, observe=lambda event, commands: short.append([MESSAGES.encode(one) for one in (event, *commands)]))
    simulate(longer, observe=lambda event, commands: long.append([MESSAGES.encode(one) for one in (event, *commands)]))
    same = next(index for index, (a, b) in enumerate(zip(short, long, strict=False)) if a != b)
    assert same >= 20


LAYERS = 4
SPREAD = GroupConfig((StageConfig((0, LAYERS), (PoolConfig("fast", 100, HEADS), PoolConfig("slow", 100, HEADS)), COST),))
HALF_THERE = replace(UNIFORM, heads=lambda kv_heads, ranks, tokens, *_: np.full((len(tokens), 1, 2), kv_heads // 2, np.int32))


@pytest.mark.parametrize("move_s", [0.002, 0.5], ids=["the step is slower", "the wire is slower"])
def test_a_prompt_that_follows_its_step_arrives_with_the_last_layer(move_s) -> None:
    """The first token waits for nothing; the second one for the step's last layer on the wire, or for the wire that had something to send since the
    first layer was passed."""
    executor, _ = simulate([Arrival(1.0, 48, 3)], replace(CONFIG, groups=(SPREAD,)), move_s=move_s, policies=HALF_THERE)
    prompt_s = COST.step_s(48, 1, 0, 48 * 24)
    arrived_s = 1.0 + max(prompt_s + move_s / LAYERS, prompt_s / LAYERS + move_s)
    decode_s = [COST.step_s(1, 1, 0, 0) + 2 * context * HEADS.token_s for context in (48, 49)]
    np.testing.assert_allclose(executor.outcomes[0][0].token_s, [1.0 + prompt_s, *(arrived_s + np.cumsum(decode_s))])


def test_prompts_that_follow_their_steps_share_the_wire_meanwhile() -> None:
    """A wire that carries one prompt while its step is computed does not carry two in that time."""
    prompt_s, done_s = COST.step_s(48, 1, 0, 48 * 24), list[float]()
    move_s = 0.9 * prompt_s

    def observe(event, commands) -> None:
        if isinstance(event, MoveDone):
            done_s.append(event.at_s)

    for groups in (1, 2):
        done_s.clear()
        simulate([Arrival(0.0, 48, 3)] * groups, replace(CONFIG, groups=(SPREAD,) * groups), observe, move_s, HALF_THERE)
        last_s = prompt_s + move_s / LAYERS if groups == 1 else prompt_s / LAYERS + 2 * move_s
        assert max(done_s) == pytest.approx(last_s)


def test_each_stage_sends_its_own_layers() -> None:
    """The first stage's prompt is there before the step is done; the last one's is not."""
    stages = tuple(replace(SPREAD.stages[0], layers=(first, first + LAYERS)) for first in (0, LAYERS))
    done_s: dict[int, float] = {}
    behind: dict[int, tuple[int, int]] = {}

    def observe(event, commands) -> None:
        if isinstance(event, MoveDone):
            done_s[behind[event.move][0]] = event.at_s
        behind.update({one.move: one.layers for one in commands if isinstance(one, MoveKv)})

    executor, _ = simulate([Arrival(0.0, 48, 3)], replace(CONFIG, groups=(GroupConfig(stages),)), observe, 0.002, HALF_THERE)
    prompt_s = [COST.step_s(48, 1, 0, 48 * 24)] * 2
    np.testing.assert_allclose([done_s[0], done_s[LAYERS]], np.cumsum(prompt_s) + 0.002 / LAYERS)
    assert done_s[0] < executor.outcomes[0][0].token_s[0] < done_s[LAYERS]
