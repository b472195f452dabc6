"""Layouts as flow networks: what links carry, by hand; what flows, by its rules."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hexgen2_cases import DEMAND, FAST, NVLINK, PCIE, SLOW, SMALL, random_site, site

from hetserve.planner.hexgen2.network import Layout, Network
from hetserve.planner.hexgen2.site import DECODE, PREFILL
from hetserve.planner.hexgen2.strategy import Strategies, Strategy
from hetserve.planner.hexgen2.transfer import Wire, transfer

OVER = site([(["a100"] * 4, PCIE, FAST), (["l40"] * 4, NVLINK, SLOW)])
FAR = (max(FAST[0], SLOW[0]), min(FAST[1], SLOW[1]))


def strategy(*stages: tuple[tuple[int, ...], int]) -> Strategy:
    return Strategy(tuple(devices for devices, _ in stages), tuple(count for _, count in stages), 1.0, 1.0, 1.0)


SHARED = site([(["a100"] * 2, PCIE, FAST), (["a100"] * 2, NVLINK, FAST), (["a100"], PCIE, SLOW)], shared=True)
SIZE_BYTES = DEMAND.input_tokens * SMALL.kv_bytes * SMALL.layers


def network(over, **changes) -> Network:
    return Network(over, Strategies(over, replace(SMALL, **changes), DEMAND))


def test_one_device_to_another() -> None:
    assert transfer(OVER, strategy(((0,), 8)), strategy(((1,), 8)), 1e6).seconds == pytest.approx(PCIE[0] + 8e6 / PCIE[1])
    assert transfer(OVER, strategy(((0,), 8)), strategy(((4,), 8)), 1e6).seconds == pytest.approx(FAR[0] + 8e6 / FAR[1])


def test_stages_that_do_not_match() -> None:
    # layers 0-4 go 0 -> 2, layer 5 goes 0 -> 3, layers 6-7 go 1 -> 3: three links at once, the slowest has five layers
    found = transfer(OVER, strategy(((0,), 6), ((1,), 2)), strategy(((2,), 5), ((3,), 3)), 1e6).seconds
    assert found == pytest.approx(PCIE[0] + 5e6 / PCIE[1])


def test_transfers_between_two_machines_share_their_link() -> None:
    found = transfer(OVER, strategy(((0,), 4), ((1,), 4)), strategy(((4,), 4), ((5,), 4)), 1e6).seconds
    assert found == pytest.approx(FAR[0] + 8e6 / FAR[1])


def test_ranks_send_the_heads_that_the_others_want() -> None:
    # two ranks to four: each sends a quarter of the heads to two others, four links at once
    found = transfer(OVER, strategy(((0, 1), 8)), strategy(((2, 3), 8)), 1e6).seconds
    assert found == pytest.approx(PCIE[0] + 4e6 / PCIE[1])
    within = site([(["a100"] * 6, PCIE, FAST)])
    assert transfer(within, strategy(((0, 1), 8)), strategy(((2, 3, 4, 5), 8)), 1e6).seconds == pytest.approx(PCIE[0] + 2e6 / PCIE[1])
    assert transfer(within, strategy(((0, 1, 2, 3), 8)), strategy(((4, 5), 8)), 1e6).seconds == pytest.approx(PCIE[0] + 2e6 / PCIE[1])


def test_what_machines_send_and_receive() -> None:
    # layers 0-5 leave machine 0, layers 6-7 machine 1; layers 0-3 arrive at machine 1, the others at the third
    found = transfer(SHARED, strategy(((0,), 6), ((2,), 2)), strategy(((3,), 4), ((4,), 4)), 1e6)
    assert found.shared_s == pytest.approx(
        {("out of", 0): 6e6 / FAST[1], ("out of", 1): 2e6 / FAST[1], ("into", 1): 4e6 / FAST[1], ("into", 2): 4e6 / SLOW[1]}
    )
    # of two ranks one stays within its machine
    found = transfer(SHARED, strategy(((0,), 8)), strategy(((1,), 2), ((2, 3), 6)), 1e6)
    assert found.shared_s == pytest.approx({("out of", 0): 6e6 / FAST[1], ("into", 1): 6e6 / FAST[1]})


def test_links_of_ones_own_and_unknown_ones_are_not_shared() -> None:
    alone = np.zeros((len(SHARED), len(SHARED)), bool)
    alone[0, 2] = True
    there, back = strategy(((0,), 8)), strategy(((2,), 8))
    assert transfer(replace(SHARED, alone=alone), there, back, 1e6).shared_s == {}
    assert set(transfer(replace(SHARED, alone=alone), back, there, 1e6).shared_s) == {("out of", 1), ("into", 0)}
    unknown = replace(SHARED, outside_bytes_per_s=np.array([np.inf, FAST[1], SLOW[1]]))
    assert set(transfer(unknown, there, back, 1e6).shared_s) == {("into", 1)}


@pytest.mark.parametrize("prefill_shares", [True, False])
def test_groups_of_one_machine_share_its_link(prefill_shares) -> None:
    """100 Gbit/s carry half of what two links of the same would."""
    ends = ["a100"], PCIE, FAST
    machines = [(["a100"] * 2, PCIE, FAST), ends, ends]
    roles = (PREFILL, PREFILL, DECODE, DECODE) if prefill_shares else (DECODE, DECODE, PREFILL, PREFILL)
    layout, carries = Layout(((0,), (1,), (2,), (3,)), roles), FAST[1] / SIZE_BYTES
    rates = [0.9 * carries] * 4
    apart, together = (network(site(machines, shared)).solve(layout, rates) for shared in (False, True))
    assert apart.total == pytest.approx(1.8 * carries) and together.total == pytest.approx(carries)
    assert together.cut == ("out of machine-0" if prefill_shares else "into machine-0",) and together.tight == {0, 1}
    assert sum(together.arcs.values()) == pytest.approx(carries) and sum(together.flows) == pytest.approx(2 * carries)
    assert network(site(machines, shared=True)).total(layout, rates) == together.total
    assert (
        network(site(machines, shared=True)).total(layout, rates, 2 * carries) == apart.total
    )  # less than asked for: how much less is not looked at


def test_what_stays_within_a_machine_needs_no_link() -> None:
    over = site([(["a100"] * 2, NVLINK, FAST), (["a100"], PCIE, FAST), (["a100"], PCIE, FAST)], shared=True)
    carries = FAST[1] / SIZE_BYTES
    outcome = network(over).solve(Layout(((0,), (1,), (2,), (3,)), (PREFILL, DECODE, PREFILL, DECODE)), [0.9 * carries] * 4)
    assert outcome.total == pytest.approx(1.8 * carries)  # 0 to 1, and 2 to 3


def test_of_links_that_are_full_the_best_use_is_made() -> None:
    """Every flow fits the links; none is less than a maximum flow that is slowed until it fits, nor more than one that nobody slows."""
    limited = 0
    for seed in range(20):
        over = random_site(seed, 7, shared=True)
        net = network(over, kv_bytes=8 * SMALL.kv_bytes, layer_parameters=0.2e9)
        free = Network(replace(over, outside_bytes_per_s=np.full(len(over.machines), np.inf)), net.strategies)
        layout = Layout(((0, 3), (1, 2), (4,), (5, 6)), (PREFILL, DECODE, DECODE, PREFILL))
        rates = [10 * rate for rate in net.rates(layout)]
        outcome, unshared = net.solve(layout, rates), free.solve(layout, rates)

        def busiest(arcs, net=net, layout=layout) -> float:
            busy: Counter[Wire] = Counter()
            for (p, d), rate in arcs.items():
                for wire, seconds in net.transfer(layout.groups[p], layout.groups[d]).shared_s.items():
                    busy[wire] += rate * seconds
            return max(busy.values(), default=0.0)

        assert busiest(outcome.arcs) <= 1 + 1e-6
        slowed = unshared.total / max(1.0, busiest(unshared.arcs))
        assert slowed * (1 - 1e-6) <= outcome.total <= unshared.total * (1 + 1e-6)
        assert outcome.total == pytest.approx(net.total(layout, rates))
        limited += outcome.total < 0.99 * unshared.total
        if outcome.total < 0.99 * unshared.total:
            assert any(one.startswith(("out of ", "into ")) for one in outcome.cut) and outcome.tight
            assert net.total(layout, rates, unshared.total) >= outcome.total
    assert limited >= 5


@pytest.mark.parametrize("shared", [False, True])
def test_flows_obey_rates_and_links(shared) -> None:
    for seed in range(20):
        over = random_site(seed, 6, shared)
        net = network(over)
        layout = Layout(((0, 1), (2,), (3, 4), (5,)), (PREFILL, DECODE, DECODE, PREFILL))
        rates = net.rates(layout)
        outcome = net.solve(layout, rates)
        assert outcome.total == pytest.approx(net.total(layout, rates))
        assert outcome.total <= net.most(layout, rates) * (1 + 1e-9)
        for number, flow in enumerate(outcome.flows):
            sent = sum(rate for pair, rate in outcome.arcs.items() if number in pair)
            assert flow <= rates[number] * (1 + 1e-9) and sent == pytest.approx(flow, abs=1e-6)
        for (source, target), rate in outcome.arcs.items():
            assert rate <= net.transfer(layout.groups[source], layout.groups[target]).most * (1 + 1e-9)
            assert (layout.roles[source], layout.roles[target]) == (PREFILL, DECODE)
        if outcome.total:
            assert outcome.cut and outcome.tight


def test_load_is_spread_where_links_allow_it() -> None:
    over = site([(["a100"] * 4 + ["l40"], NVLINK, FAST)])
    net = network(over)
    outcome = net.spread(net.solve(Layout(((0,), (1,), (4,), (2,)), (PREFILL, PREFILL, PREFILL, DECODE))))
    used = [flow / rate for flow, rate in zip(outcome.flows, outcome.rates, strict=True)]
    assert used == pytest.approx([used[0]] * 3 + [1.0]) and used[0] < 1
    assert sum(outcome.arcs.values()) == pytest.approx(outcome.total)


def test_a_slow_link_is_the_bottleneck_and_is_told() -> None:
    over = site([(["a100"], PCIE, (1e-3, 1e7)), (["a100"], PCIE, (1e-3, 1e7))])
    outcome = network(over).solve(Layout(((0,), (1,)), (PREFILL, DECODE)))
    assert outcome.cut == ("group 0 to group 1",) and outcome.tight == {0, 1}
    size_bytes = DEMAND.input_tokens * SMALL.kv_bytes * SMALL.layers
    assert outcome.total == pytest.approx(1 / (1e-3 + size_bytes / 1e7))


def test_without_one_of_the_roles_nothing_flows() -> None:
    outcome = network(OVER).solve(Layout(((0,), (1,)), (PREFILL, PREFILL)))
    assert (outcome.total, outcome.arcs) == (0.0, {})
