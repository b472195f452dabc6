"""Planners on made-up clusters: who gets which role and why, budgets never exceeded, errors that say what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_cases import GIB, cluster, model, profile

from hetserve.control.config import config_from_plan
from hetserve.cost.costs import Costs
from hetserve.errors import HetserveError, ResourceError, SpecError, UnsupportedError, UsageError
from hetserve.planner.case import open_case
from hetserve.planner.hetis import exclude
from hetserve.planner.options import Options
from hetserve.spec.cluster import Link
from hetserve.spec.plan import Plan, decode_plan, encode_plan
from hetserve.spec.workload import Workload
from hetserve.systems import SYSTEMS, policies_for, system

MODEL = model()
PAIR = cluster({"fast": ("amx", 1.0), "slow": ("avx2", 0.75)})
LONG = Workload(1100.0, 400.0)


def plan(name: str, on=PAIR, spec=MODEL, **options) -> Plan:
    return system(name).planner(on, spec, LONG, Options(**options))


def apart(slower: float, **changes):
    """Profile of PAIR, the slow device's products `slower` times slower."""
    return profile(MODEL, PAIR, {"amx": 2e-7 * 1024 / 16, "avx2": slower * 2e-7 * 1024 / 16}, **changes)


def used_bytes(made: Plan) -> dict[str, int]:
    """What each device holds under the plan."""
    costs, limits = Costs(made.model.shape, made.model.dtype, made.cluster), made.limits
    used = {device.name: 0 for device in made.cluster.devices}
    for group in made.groups:
        for stage in group.stages:
            what = (stage.primary[0], stage.layers, stage.weights)
            used[stage.primary[0]] += costs.weight_bytes(*what) + costs.workspace_bytes(*what, limits.max_step_tokens, limits.max_seqs)
            for pool in stage.pools:
                used[pool.device] += pool.pages * pool.page_bytes
    return used


@pytest.mark.parametrize("slower", [None, 2.0, 12.0, 70.0])
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_plan_keeps_the_budgets_says_why_and_can_be_run(name, slower) -> None:
    made = plan(name, profile=slower and apart(slower))
    assert all(used <= PAIR.device(device).memory_bytes for device, used in used_bytes(made).items())
    assert decode_plan(encode_plan(made), "plan") == made
    assert config_from_plan(made).groups and made.system == name
    told = " ".join(made.notes)
    for stage in (stage for group in made.groups for stage in group.stages):
        assert all(device in told for device in (*stage.primary, *stage.attention))
    assert all(group.requests_per_s > 0 for group in made.groups)
    assert policies_for(name, made.online).heads


def test_a_much_slower_device_becomes_an_attention_worker_with_all_its_memory() -> None:
    made = plan("hetis", profile=apart(70.0))
    ((stage,),) = (group.stages for group in made.groups)
    assert (stage.primary, stage.attention, stage.weights) == (("fast",), ("slow",), "bfloat16")
    assert stage.pools[1].pages * stage.pools[1].page_bytes > 0.9 * 0.75 * GIB
    assert (made.online.heads, made.online.theta) == ("exact", 0.5)
    assert "Delta" in made.notes[1]


def test_a_slow_link_leaves_the_device_out_and_nothing_is_lost() -> None:
    links = tuple(Link(a, b, 0.010, 2e9, emulate=True) for a, b in (("fast", "slow"), ("slow", "fast")))
    far = replace(PAIR, links=links)
    made, plain = (plan(name, on=far, profile=apart(70.0)) for name in ("hetis", "uniform"))
    assert made.groups == plain.groups
    assert any("slow: left out" in note for note in made.notes)


def table_1(per_type: int):
    """The paper's Table 1, prefill: 0.06, 0.147 and 1.47 s."""
    types = {"a100": ("amx", 80.0), "r3090": ("avx512", 24.0), "p100": ("avx2", 12.0)}
    over = cluster({f"{name}-{index}": types[name] for name in types for index in range(per_type)})
    spec = model(80)
    return over, spec, profile(spec, over, {"amx": 0.06e-4, "avx512": 0.147e-4, "avx2": 1.47e-4})


def test_the_papers_cluster_p100s_out_3090s_in() -> None:
    over, spec, known = table_1(4)
    case = open_case(over, spec, LONG, Options(profile=known))
    removed = exclude(case, [device.name for device in over.devices], 0.05)
    assert sorted(one.device for one in removed) == ["p100-0", "p100-1", "p100-2", "p100-3"]
    made = system("hetis").planner(*table_1(1)[:2], LONG, Options(profile=table_1(1)[2]))
    ((stages),) = (group.stages for group in made.groups)
    assert {stage.primary[0] for stage in stages} <= {"a100-0", "r3090-0"}


@settings(max_examples=40, deadline=None)
@given(st.floats(1.0, 60.0), st.floats(0.01, 0.2))
def test_a_device_is_excluded_exactly_at_its_share_of_the_speed(slower, delta) -> None:
    """Removed iff its share of the aggregate speed is at most Delta / (1 + Delta), 4.76 % for 0.05; here layers are all that counts."""
    known = profile(MODEL, PAIR, {"amx": 1e-3, "avx2": slower * 1e-3})
    known = replace(known, devices=tuple(replace(one, prefill_pair_s=1e-15) for one in known.devices))
    wide = replace(PAIR, devices=tuple(replace(one, memory_bytes=2**40) for one in PAIR.devices))
    case = open_case(wide, MODEL, LONG, Options(profile=known))
    share, limit = 1 / (1 + slower), delta / (1 + delta)
    if abs(share - limit) > 1e-3 * limit:
        assert bool(exclude(case, ["fast", "slow"], delta)) == (share < limit)


def test_nobody_is_excluded_whose_memory_the_weights_need() -> None:
    tight = cluster({"fast": ("amx", 0.5), "slow": ("avx2", 1.0)})
    known = profile(MODEL, tight, {"amx": 1e-5, "avx2": 1e-3})
    case = open_case(tight, MODEL, LONG, Options(profile=known))
    assert exclude(case, ["fast", "slow"], 0.05) == ()
    made = system("hetis").planner(tight, MODEL, LONG, Options(profile=known))
    assert len(made.groups[0].stages) == 2


def test_layers_in_proportion_to_speed() -> None:
    wide = cluster({"fast": ("amx", 8.0), "slow": ("avx512", 8.0)})
    spec = model(40, vocab_size=64)
    known = profile(spec, wide, {"amx": 1e-4, "avx512": 3e-4})
    made = system("hexgen").planner(wide, spec, Workload(1000.0, 10.0), Options(profile=known))
    if len(made.groups) == 1:
        layers = {stage.primary[0]: stage.layers[1] - stage.layers[0] for stage in made.groups[0].stages}
        assert layers["fast"] == pytest.approx(30, abs=2)
    else:
        rates = {group.stages[0].primary[0]: group.requests_per_s for group in made.groups}
        assert rates["fast"] / rates["slow"] == pytest.approx(3, rel=0.1)


def test_weights_are_stored_as_the_device_is_fastest_with() -> None:
    wide = replace(PAIR, devices=tuple(replace(one, memory_bytes=4 * GIB) for one in PAIR.devices))
    known = profile(MODEL, wide, {"amx": 1e-5, "avx2": 1e-3}, float32=0.2)
    made = system("replicas").planner(wide, MODEL, LONG, Options(profile=known))
    assert [group.stages[0].weights for group in made.groups] == ["float32", "float32"]
    assert {group.stages[0].weights for group in plan("replicas", profile=apart(12.0)).groups} == {"bfloat16"}
    assert made.model.dtype == "bfloat16"


def test_a_replica_that_is_too_small_for_the_longest_sequence_is_left_out() -> None:
    both, one = plan("replicas", profile=apart(2.0)), plan("replicas", profile=apart(2.0), max_model_len=8000)
    assert [group.stages[0].primary for group in both.groups] == [("fast",), ("slow",)] and both.limits.max_model_len < 8000
    assert [group.stages[0].primary for group in one.groups] == [("fast",)] and one.limits.max_model_len == 8000
    assert any("slow: left out" in note for note in one.notes)


def test_splitwise_has_one_group_for_each_phase() -> None:
    made = plan("splitwise", profile=apart(12.0))
    assert [(group.role, group.stages[0].primary) for group in made.groups] == [("prefill", ("fast",)), ("decode", ("slow",))]
    assert [(arc.source, arc.target, arc.share) for arc in made.flow] == [(0, 1, 1.0)]
    with pytest.raises(UnsupportedError, match="two devices"):
        plan("splitwise", on=replace(PAIR, devices=PAIR.devices[:1]))


def test_one_device_is_uniform_whoever_plans() -> None:
    single = replace(PAIR, devices=PAIR.devices[:1])
    expected = plan("uniform", on=single).groups
    assert all(plan(name, on=single).groups == expected for name in ("hetis", "hexgen", "replicas"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_budgets_that_hold_nothing_are_told(name) -> None:
    tiny = cluster({"fast": ("amx", 0.1), "slow": ("avx2", 0.1)})
    with pytest.raises(ResourceError, match="MiB"):
        plan(name, on=tiny)


def test_a_profile_of_something_else_and_bad_options() -> None:
    other = profile(model(8), PAIR, {"amx": 1e-5, "avx2": 1e-4})
    wrong_cap = replace(PAIR, devices=(PAIR.devices[0], replace(PAIR.devices[1], isa="avx512")))
    for name in SYSTEMS:
        with pytest.raises(SpecError):
            plan(name, profile=other)
        with pytest.raises(SpecError):
            plan(name, on=wrong_cap, profile=apart(3.0))
    for options in ({"heads": "exakt"}, {"theta": 0.0}, {"delta": -1.0}, {"max_seqs": 9, "max_step_tokens": 8}):
        with pytest.raises(UsageError):
            plan("hetis", **options)
    with pytest.raises(HetserveError):
        plan("hetis", max_model_len=10**6)
