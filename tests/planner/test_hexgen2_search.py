"""The search against every layout of small clusters, against its bound on larger ones, and against its own ablations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hexgen2_cases import DEMAND, FAST, PCIE, SLOW, SMALL, Sheets, best_of_all, het1, large_site, random_case, random_site, site

from hetserve.planner.hexgen2.changes import drawn, everything, guided, left_out
from hetserve.planner.hexgen2.genetic import evolve
from hetserve.planner.hexgen2.limit import upper_bound
from hetserve.planner.hexgen2.network import Layout, Network, Outcome
from hetserve.planner.hexgen2.search import Search, improve
from hetserve.planner.hexgen2.site import DECODE, PREFILL, Site
from hetserve.planner.hexgen2.start import first_layouts, group_counts
from hetserve.planner.hexgen2.strategy import Strategies


def search(over: Site, costs=SMALL, demand=DEMAND, **how) -> Outcome | None:
    network = Network(over, Strategies(over, costs, demand, how.get("fastest_prefill", False)))
    return (evolve if how.get("method") == "genetic" else improve)(network, Search(**how))[0]


def test_within_reach_of_every_layout_of_small_clusters() -> None:
    ratios = []
    for seed in range(24):
        over, costs, demand = random_case(seed, 3 + seed % 3)
        best = best_of_all(over, costs, demand)
        found = search(over, costs, demand)
        assert (found is None) == (best == 0)
        if found is not None:
            assert found.total <= best * (1 + 1e-6) and best <= upper_bound(over, costs, demand) * (1 + 1e-6)
            ratios.append(found.total / best)
    assert len(ratios) > 12 and np.median(ratios) >= 0.99 and min(ratios) >= 0.95


def test_with_the_fastest_prefill_strategies_too() -> None:
    for seed in range(6):
        over, costs, demand = random_case(seed, 4)
        best = best_of_all(over, costs, demand, fastest_prefill=True)
        found = search(over, costs, demand, fastest_prefill=True)
        assert (found.total if found else 0.0) >= 0.95 * best


def test_groups_are_laid_out_for_the_links_that_they_share() -> None:
    over = site([(["h100"] * 3, PCIE, SLOW), (["l40"] * 2, PCIE, SLOW)], shared=True)
    free = replace(over, outside_bytes_per_s=np.full(len(over.machines), np.inf))
    costs = replace(SMALL, kv_bytes=4 * SMALL.kv_bytes)
    best, found, elsewhere = best_of_all(over, costs, DEMAND), search(over, costs), search(free, costs)
    assert found is not None and elsewhere is not None and found.total == pytest.approx(best)
    as_if_free = Network(over, Strategies(over, costs, DEMAND)).solve(elsewhere.layout).total
    assert as_if_free < 0.999 * best and best < 0.95 * elsewhere.total


def test_the_same_seed_finds_the_same() -> None:
    for method in ("guided", "random", "genetic"):
        once, again = (search(random_site(5, 8), method=method, effort=400, seed=3) for _ in range(2))
        assert once is not None and once == again


@pytest.mark.parametrize("method", ["guided", "random", "genetic"])
def test_no_search_looks_at_more_than_it_may_nor_beats_the_bound(method) -> None:
    over = het1()
    network = Network(over, Strategies(over, Sheets(), DEMAND))
    found, progress = (evolve if method == "genetic" else improve)(network, Search(method, effort=200))
    assert found is not None and 0 < found.total <= upper_bound(over, Sheets(), DEMAND)
    assert progress.tried <= 200 + 40  # and the first layouts


def test_guided_changes_raise_the_flow_of_the_first_layout() -> None:
    over = het1()
    network = Network(over, Strategies(over, Sheets(), DEMAND))
    found, progress = improve(network, Search(effort=600))
    assert found is not None and found.total > progress.first * 1.02


def test_a_device_that_only_hurts_is_left_out() -> None:
    over = site([(["a100"], PCIE, FAST), (["a100"], PCIE, FAST), (["p100"], PCIE, (1e-2, 1e6))])
    found = search(over)
    assert found is not None and left_out(over, found.layout) == (2,)


def test_memory_that_only_one_partition_can_make_do_with() -> None:
    tight = replace(SMALL, layer_parameters=5.2e9)  # 83 GB of weights
    over = site([(["a100"], PCIE, FAST), (["a100"], PCIE, FAST), (["3090"], PCIE, FAST), (["3090"], PCIE, FAST), (["p100"], PCIE, FAST)])
    found = search(over, tight)
    best = best_of_all(over, tight, DEMAND)
    assert (found.total if found else 0.0) == pytest.approx(best) and best > 0


def test_devices_that_hold_a_layer_only_together() -> None:
    over, costs, demand = random_case(27, 6)  # two P100 with room for half a layer each, which the second group cannot do without
    found = search(over, costs, demand)
    assert found is not None and found.total == pytest.approx(best_of_all(over, costs, demand))


def test_nothing_fits() -> None:
    assert search(site([(["p100"] * 3, PCIE, FAST)])) is None
    assert search(site([(["a100"], PCIE, FAST)])) is None


def test_first_layouts_have_about_as_many_groups_as_memory_has_room_for() -> None:
    over = large_site(64)
    network = Network(over, Strategies(over, Sheets(), DEMAND))
    weights = 2 * 80 * 0.856e9
    most = int(over.memory_bytes.sum() // weights)
    assert all(2 <= count <= most for count in group_counts(network))
    for layout in first_layouts(network):
        assert all(rate > 0 for rate in network.rates(layout)) and {PREFILL, DECODE} == set(layout.roles)


def test_changes_lose_and_double_no_device() -> None:
    over = random_site(2, 9)
    layout = Layout(((0, 1), (2, 3), (4, 5, 6)), (PREFILL, DECODE, DECODE))
    outcome = Network(over, Strategies(over, SMALL, DEMAND)).solve(layout)
    rng = np.random.default_rng(0)
    for change in (*guided(over, outcome, rng, 500), *everything(over, layout), *drawn(over, layout, rng, 200)):
        after = change.apply(layout)
        devices = [device for group in after.groups for device in group]
        assert len(devices) == len(set(devices)) and all(after.groups) and len(after.groups) == len(after.roles)
        assert set(devices) | set(left_out(over, after)) == set(range(9))
        assert all(tuple(sorted(group)) == group for group in after.groups)
