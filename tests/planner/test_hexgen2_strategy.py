"""How one group runs the model: against every way there is on small groups, and what no strategy may do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hexgen2_cases import DEMAND, FAST, NVLINK, PCIE, SLOW, SMALL, Brute, Sheets, random_site, site

from hetserve.planner.hexgen2.shapes import shapes
from hetserve.planner.hexgen2.site import DECODE, PREFILL, Ranks
from hetserve.planner.hexgen2.strategy import Strategies, Strategy, hop_s, ranks_of

MIXED = site([(["a100", "a100", "l40"], PCIE, FAST), (["p100"], PCIE, SLOW)])


@pytest.mark.parametrize("seed", range(24))
def test_as_good_as_all_ranks_orders_and_cuts(seed) -> None:
    over = random_site(seed, 4)
    costs = replace(SMALL, layer_parameters=(0.8e9, 2e9, 4e9)[seed % 3])
    devices = tuple(range(2 + seed % 3))
    ours, brute = Strategies(over, costs, DEMAND), Brute(over, costs, DEMAND)
    for role in (PREFILL, DECODE):
        best, every = ours.best(devices, role), brute.best(devices, role)
        assert (best is None) == (every is None)
        if best is not None and every is not None and role == PREFILL:
            assert best.latency_s <= every.latency_s * 1.002
        elif best is not None and every is not None:
            assert best.rate >= every.rate * 0.995


def sound(best: Strategy, devices: tuple[int, ...], over, costs: Sheets) -> None:
    """All devices, all layers, ranks of one kind and machine, room for weights and sequences."""
    assert sorted(device for stage in best.stages for device in stage) == sorted(devices)
    assert sum(best.layers) == costs.layers and min(best.layers) >= 1
    last = len(best.stages) - 1
    for number, (stage, count) in enumerate(zip(best.stages, best.layers, strict=True)):
        assert len({(over.kinds[device], over.nodes[device]) for device in stage}) == 1 and len(stage) in (1, 2, 4, 8)
        held = costs.bytes(Ranks(int(over.kinds[stage[0]]), len(stage)))
        fixed = held.fixed + held.first * (number == 0) + held.last * (number == last)
        kv = best.sequences * DEMAND.input_tokens * costs.kv_bytes * count / len(stage)
        assert fixed + held.layer * count + kv <= over.memory_bytes[stage[0]]


def test_strategies_keep_the_rules() -> None:
    for seed in range(12):
        over = random_site(seed, 6)
        strategies = Strategies(over, SMALL, DEMAND)
        for devices in ((0, 1), (1, 3, 5), (0, 1, 2, 3, 4, 5)):
            for role in (PREFILL, DECODE):
                best = strategies.best(devices, role)
                if best is not None:
                    sound(best, devices, over, SMALL)


def test_weak_devices_get_few_layers() -> None:
    best = Strategies(MIXED, SMALL, DEMAND).best((0, 3), PREFILL)
    assert best is not None
    assert {MIXED.names[stage[0]]: count for stage, count in zip(best.stages, best.layers, strict=True)} == {"a100-0": 7, "p100-3": 1}


def test_equal_devices_get_equal_layers() -> None:
    over = site([(["a100"], PCIE, FAST), (["a100"], PCIE, FAST)])
    for role in (PREFILL, DECODE):
        best = Strategies(over, SMALL, DEMAND).best((0, 1), role)
        assert best is not None and best.layers == (4, 4)


def test_prompts_are_fast_on_ranks_and_many_on_a_pipeline() -> None:
    over = site([(["a6000"] * 4, (1e-5, 6e9), FAST)])
    least = Strategies(over, SMALL, DEMAND).best((0, 1, 2, 3), PREFILL)
    most = Strategies(over, SMALL, DEMAND, fastest_prefill=True).best((0, 1, 2, 3), PREFILL)
    assert least is not None and most is not None
    assert least.latency_s < most.latency_s and least.rate < most.rate
    assert len(least.stages) < len(most.stages)


def test_ranks_need_one_machine_and_one_kind() -> None:
    seen = {len(stage) for order in shapes(MIXED, (0, 1, 2, 3), 8) for stage in order}
    assert seen == {1, 2}
    assert all(set(stage) <= {0, 1} for order in shapes(MIXED, (0, 1, 2, 3), 8) for stage in order if len(stage) > 1)


def test_groups_that_look_alike_share_an_answer() -> None:
    over = site([(["a100", "l40"], PCIE, FAST)] * 3)
    strategies = Strategies(over, SMALL, DEMAND)
    rates = {strategies.rate(group, DECODE) for group in ((0, 1), (2, 3), (4, 5), (0, 3), (2, 1), (5, 0))}
    assert strategies.searched == 2 and len(rates) == 2  # within a machine, and between two
    best = strategies.best((4, 5), DECODE)
    assert best is not None and {device for stage in best.stages for device in stage} == {4, 5}


def test_too_little_memory_is_no_strategy() -> None:
    assert Strategies(MIXED, SMALL, DEMAND).best((3,), DECODE) is None
    assert Strategies(MIXED, SMALL, replace(DEMAND, longest=1e7)).best((0, 1), PREFILL) is None


def test_hops_and_ranks_by_hand() -> None:
    over = site([(["a100", "a100"], NVLINK, FAST), (["l40"], PCIE, FAST)])
    assert ranks_of(over, (0, 1)) == Ranks(1, 2, *NVLINK)
    alone = FAST[0] + 1e6 / FAST[1]
    assert hop_s([SLOW, FAST], ranks_of(over, (2,)), 1e6) == pytest.approx(alone)
    handed_on = 2 * (NVLINK[0] + 1e6 / (2 * NVLINK[1]))
    assert hop_s([FAST], ranks_of(over, (0, 1)), 1e6) == pytest.approx(alone + handed_on)


def test_large_groups_are_tried_in_fewer_ways() -> None:
    over = site([(["a100"] * 8, NVLINK, FAST), (["l40"] * 8, PCIE, FAST), (["a6000"] * 8, PCIE, FAST), (["3090"] * 8, PCIE, FAST)])
    assert len(list(shapes(over, range(32), 80))) < 3000
    assert np.isfinite(Strategies(over, Sheets(), DEMAND).rate(tuple(range(32)), DECODE))
    scattered = site([(["p100", "p100", "3090"], PCIE, SLOW)] * 20)
    assert 1 <= len(list(shapes(scattered, range(60), 80))) < 20
