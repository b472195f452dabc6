"""HexGen's groups by search: mixed strategies and layouts against all there are, and the same numbers as the planners' estimate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hexgen2_cases import DEMAND, SMALL, Brute, Sheets, best_mixed_of_all, het1, random_case, random_site
from planner_cases import cluster, model

from hetserve.planner.case import open_case
from hetserve.planner.estimate import rate
from hetserve.planner.hexgen import plan_hexgen
from hetserve.planner.hexgen2.changes import drawn, everything, guided, left_out
from hetserve.planner.hexgen2.find import network_of
from hetserve.planner.hexgen2.into_plan import group_of
from hetserve.planner.hexgen2.limit import upper_bound
from hetserve.planner.hexgen2.network import Layout, Mixed
from hetserve.planner.hexgen2.search import Search, improve
from hetserve.planner.hexgen2.site import DECODE, MIXED, PREFILL
from hetserve.planner.hexgen2.strategy import Strategies
from hetserve.planner.options import Options
from hetserve.spec.cluster import Host
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import decode_plan, encode_plan
from hetserve.spec.workload import Workload

HOST = Host((0, 1), 2**33, "avx2")
CHAT = Workload(700.0, 200.0)
LLAMA_13B = model(40, hidden_size=5120, num_attention_heads=40, num_key_value_heads=40, intermediate_size=13824)
LITTLE = Search(effort=300, starts=2)


@pytest.mark.parametrize("step_tokens", [float("inf"), 1024.0])
def test_mixed_strategies_are_as_good_as_all_ranks_orders_and_cuts(step_tokens) -> None:
    demand = replace(DEMAND, step_tokens=step_tokens)
    for seed in range(12):
        over = random_site(seed, 4)
        costs = replace(SMALL, layer_parameters=(0.8e9, 2e9, 4e9)[seed % 3])
        devices = tuple(range(2 + seed % 3))
        best, every = (kind(over, costs, demand).best(devices, MIXED) for kind in (Strategies, Brute))
        assert (best is None) == (every is None)
        if best is not None and every is not None:
            assert 0.97 * every.rate <= best.rate <= every.rate * (1 + 1e-9)


def test_within_reach_of_every_mixed_layout_of_small_clusters_and_below_the_bound() -> None:
    ratios = []
    for seed in range(8):
        over, costs, demand = random_case(seed, 3 + seed % 2)
        best = best_mixed_of_all(over, costs, demand)
        found, _ = improve(Mixed(over, Strategies(over, costs, demand)), Search())
        assert (found is None) == (best == 0)
        if found is not None:
            assert best <= upper_bound(over, costs, demand, mixed=True) * (1 + 1e-9)
            ratios.append(found.total / best)
    assert len(ratios) > 5 and np.median(ratios) >= 0.99 and min(ratios) >= 0.95


def test_a_mixed_group_computes_prompts_beside_what_it_decodes() -> None:
    """Less than a group that only decodes, more than one that spends on each prompt a pass of its own."""
    over = het1()
    strategies = Strategies(over, Sheets(), DEMAND)
    for devices in ((0, 1), (2, 3, 4, 5), (8, 9, 10, 11)):
        mixed, decode, prefill = (strategies.rate(devices, role) for role in (MIXED, "decode", "prefill"))
        assert 1 / (1 / decode + 1 / prefill) * 0.95 < mixed < min(decode, prefill)


def test_changes_of_mixed_layouts_stay_mixed() -> None:
    over = random_site(2, 9)
    layout = Layout(((0, 1), (2, 3), (4, 5, 6)), (MIXED,) * 3)
    outcome = Mixed(over, Strategies(over, SMALL, DEMAND)).solve(layout)
    rng = np.random.default_rng(0)
    changes = [*guided(over, outcome, rng, 500), *everything(over, layout), *drawn(over, layout, rng, 100)]
    for change in changes:
        after = change.apply(layout)
        devices = [device for group in after.groups for device in group]
        assert len(devices) == len(set(devices)) and set(after.roles) <= {MIXED}
        assert set(devices) | set(left_out(over, after)) == set(range(9))
    assert any(len(change.apply(layout).groups) == 4 for change in changes)


def test_one_number_from_search_and_estimate() -> None:
    """On devices that share no layers, where both know the same."""
    over = cluster({"a": ("amx", 2.0), "b": ("avx512", 1.5), "c": ("avx2", 1.5)})
    spec = model()
    case = open_case(over, spec, CHAT, Options(max_model_len=2048))
    network = network_of(case, Search(), Mixed)
    for devices in ((0,), (1,), (0, 1), (1, 2), (0, 1, 2)):
        strategy = network.strategies.best(devices, MIXED)
        assert strategy is not None
        made = group_of(case, network, strategy, MIXED)
        assert strategy.rate == pytest.approx(rate(case, made), rel=0.1)


def test_one_number_with_ranks_and_in_deep_pipelines() -> None:
    case = open_case(load_cluster("hetis-testbed", HOST), LLAMA_13B, CHAT, Options())
    network = network_of(case, Search(), Mixed)
    for devices in ((0,), (0, 1), (4, 5, 6, 7), (0, 4, 5), (0, 1, 4, 5, 6, 7), tuple(range(12))):
        for role in (MIXED, DECODE, PREFILL):
            strategy = network.strategies.best(devices, role)
            assert strategy is not None
            assert strategy.rate == pytest.approx(rate(case, group_of(case, network, strategy, role)), rel=0.1)


def test_the_papers_cluster_is_used_as_a_whole() -> None:
    made = plan_hexgen(load_cluster("hetis-testbed", HOST), LLAMA_13B, CHAT, Options(), LITTLE)
    assert decode_plan(encode_plan(made), "plan") == made and {group.role for group in made.groups} == {"mixed"}
    names = [name for group in made.groups for stage in group.stages for name in stage.primary]
    assert len(set(names)) == len(names) and any(len(stage.primary) > 1 for group in made.groups for stage in group.stages)
    told = " ".join(made.notes)
    assert all(device.name in told for device in made.cluster.devices)
    assert "upper bound: " in told and "chosen: found by guided search" in told and not made.flow


def test_small_clusters_of_cpus_are_not_searched() -> None:
    over = cluster({"fast": ("amx", 1.0), "slow": ("avx2", 0.75)})
    made = plan_hexgen(over, model(), CHAT, Options())
    assert "chosen: the best of all layouts of one device a stage" in " ".join(made.notes)
    assert all(len(stage.primary) == 1 for group in made.groups for stage in group.stages)
