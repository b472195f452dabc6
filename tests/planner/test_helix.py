"""Helix's placement as plans: ways that share nothing, units that are sets of ranks, large clusters in parts."""

from __future__ import annotations

import pytest
from hexgen2_cases import DEMAND, Sheets, het1, large_site, random_case
from planner_cases import cluster, model

from hetserve.errors import ResourceError
from hetserve.planner.helix import MOST_UNITS, Placement, plan_helix
from hetserve.planner.hexgen2.limit import upper_bound
from hetserve.planner.hexgen2.network import Mixed
from hetserve.planner.hexgen2.site import MIXED
from hetserve.planner.hexgen2.strategy import Strategies
from hetserve.planner.options import Options
from hetserve.spec.plan import decode_plan, encode_plan
from hetserve.spec.workload import Workload

CHAT = Workload(700.0, 200.0)


def test_ways_share_nothing_and_their_flow_is_below_the_bound() -> None:
    for seed in range(4):
        case = random_case(seed, 5)
        placement = Placement(Mixed(case[0], Strategies(*case)), 2)
        found = placement.best()
        used = [device for group in found.groups for device in group]
        assert len(set(used)) == len(used) and found.flow <= found.bound * (1 + 1e-6)
        assert all(placement.network.strategies.rate(group, MIXED) > 0 for group in found.groups)
        assert found.flow <= upper_bound(*case, mixed=True)


def test_units_are_ranks_of_one_machine_and_more_layers_let_less_through() -> None:
    placement = Placement(Mixed(het1(), Strategies(het1(), Sheets(), DEMAND)), 4)
    (parts,) = placement._parts()
    assert [len(unit) for unit in sorted(parts)] == [2, 4, 2, 4, 4, 4]
    for unit in parts:
        rates = placement.rates(unit)
        held = [rate for rate in rates if rate > 0]
        assert rates[0] == 0 and held[0] == max(held) > 2 * held[-1]


def test_a_large_cluster_is_placed_in_parts_of_the_same_mixture() -> None:
    over = large_site(64)
    placement = Placement(Mixed(over, Strategies(over, Sheets(), DEMAND)), 1)
    parts = placement._parts()
    assert sorted(device for part in parts for (device,) in part) == list(range(64)) and max(map(len, parts)) <= MOST_UNITS
    counts = [[sum(over.kinds[device] == kind for (device,) in part) for kind in sorted(set(over.kinds.tolist()))] for part in parts]
    assert all(max(each) - min(each) <= 2 for each in zip(*counts, strict=True))


def test_a_plan_says_what_it_is_and_is_the_same_each_time() -> None:
    over = cluster({"fast": ("amx", 0.4), "slow": ("avx2", 0.4), "other": ("avx2", 0.4)})
    made, again = (plan_helix(over, model(), CHAT, Options(max_model_len=1024)) for _ in range(2))
    assert made == again and decode_plan(encode_plan(made), "plan") == made and made.system == "helix"
    told = " ".join(made.notes)
    assert "chosen: the largest flow through units of at most 1 device" in told and "upper bound: " in told
    assert all(device.name in told for device in over.devices)


def test_nothing_fits() -> None:
    with pytest.raises(ResourceError, match="does not fit"):
        plan_helix(cluster({"tiny": ("amx", 0.05)}), model(), CHAT, Options())
