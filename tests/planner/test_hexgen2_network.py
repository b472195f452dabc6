"""Layouts as flow networks: what links carry, by hand; what flows, by its rules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hexgen2_cases import DEMAND, FAST, NVLINK, PCIE, SLOW, SMALL, random_site, site

from hetserve.planner.hexgen2.network import Layout, Network, transfer_s
from hetserve.planner.hexgen2.site import DECODE, PREFILL
from hetserve.planner.hexgen2.strategy import Strategies, Strategy

OVER = site([(["a100"] * 4, PCIE, FAST), (["l40"] * 4, NVLINK, SLOW)])
FAR = (max(FAST[0], SLOW[0]), min(FAST[1], SLOW[1]))


def strategy(*stages: tuple[tuple[int, ...], int]) -> Strategy:
    return Strategy(tuple(devices for devices, _ in stages), tuple(count for _, count in stages), 1.0, 1.0, 1.0)


def network(over, **changes) -> Network:
    return Network(over, Strategies(over, replace(SMALL, **changes), DEMAND))


def test_one_device_to_another() -> None:
    assert transfer_s(OVER, strategy(((0,), 8)), strategy(((1,), 8)), 1e6) == pytest.approx(PCIE[0] + 8e6 / PCIE[1])
    assert transfer_s(OVER, strategy(((0,), 8)), strategy(((4,), 8)), 1e6) == pytest.approx(FAR[0] + 8e6 / FAR[1])


def test_stages_that_do_not_match() -> None:
    # layers 0-4 go 0 -> 2, layer 5 goes 0 -> 3, layers 6-7 go 1 -> 3: three links at once, the slowest has five layers
    found = transfer_s(OVER, strategy(((0,), 6), ((1,), 2)), strategy(((2,), 5), ((3,), 3)), 1e6)
    assert found == pytest.approx(PCIE[0] + 5e6 / PCIE[1])


def test_transfers_between_two_machines_share_their_link() -> None:
    found = transfer_s(OVER, strategy(((0,), 4), ((1,), 4)), strategy(((4,), 4), ((5,), 4)), 1e6)
    assert found == pytest.approx(FAR[0] + 8e6 / FAR[1])


def test_ranks_send_the_heads_that_the_others_want() -> None:
    # two ranks to four: each sends a quarter of the heads to two others, four links at once
    found = transfer_s(OVER, strategy(((0, 1), 8)), strategy(((2, 3), 8)), 1e6)
    assert found == pytest.approx(PCIE[0] + 4e6 / PCIE[1])
    within = site([(["a100"] * 6, PCIE, FAST)])
    assert transfer_s(within, strategy(((0, 1), 8)), strategy(((2, 3, 4, 5), 8)), 1e6) == pytest.approx(PCIE[0] + 2e6 / PCIE[1])
    assert transfer_s(within, strategy(((0, 1, 2, 3), 8)), strategy(((4, 5), 8)), 1e6) == pytest.approx(PCIE[0] + 2e6 / PCIE[1])


def test_flows_obey_rates_and_links() -> None:
    for seed in range(20):
        over = random_site(seed, 6)
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
            assert rate <= net.link(layout.groups[source], layout.groups[target]) * (1 + 1e-9)
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
