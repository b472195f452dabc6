"""HexGen-2 plans of cluster files: budgets kept, flows that add up, notes that say what was promised, errors that say what is missing."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from planner_cases import GIB, cluster, model, profile

from hetserve.catalog import rows
from hetserve.control.config import config_from_plan
from hetserve.cost.costs import Costs
from hetserve.errors import ResourceError, UsageError
from hetserve.planner.case import open_case
from hetserve.planner.hexgen2 import find
from hetserve.planner.hexgen2.from_case import costs_of, demand_of, site_of
from hetserve.planner.hexgen2.plan import plan_hexgen2
from hetserve.planner.hexgen2.search import Search
from hetserve.planner.hexgen2.site import Ranks
from hetserve.planner.options import Options
from hetserve.spec.cluster import Host
from hetserve.spec.links import Link, Wire
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Plan, decode_plan, encode_plan
from hetserve.spec.workload import Workload

MODEL = model()
PAIR = cluster({"fast": ("amx", 1.0), "slow": ("avx2", 0.75)})
LONG = Workload(1100.0, 400.0)
CHAT = Workload(700.0, 200.0)
HOST = Host((0, 1), 2**33, "avx2")
LLAMA_13B = model(40, hidden_size=5120, num_attention_heads=40, num_key_value_heads=40, intermediate_size=13824)
LITTLE = Search(effort=300, starts=2)


def used_bytes(made: Plan) -> dict[str, float]:
    """What each device holds at least: its share of weights and workspace, its pages."""
    costs, limits = Costs(made.model.shape, made.model.dtype, made.cluster), made.limits
    used: dict[str, float] = defaultdict(float)
    for stage in (stage for group in made.groups for stage in group.stages):
        for pool in stage.pools:
            used[pool.device] += costs.weight_bytes(pool.device, stage.layers, stage.weights, len(stage.primary))
            step = (limits.max_step_tokens, limits.max_seqs, limits.max_model_len, len(stage.primary))
            used[pool.device] += costs.workspace_bytes(pool.device, stage.layers, stage.weights, *step)
            used[pool.device] += pool.pages * pool.page_bytes
    return used


def check(made: Plan) -> None:
    """What every plan promises."""
    assert decode_plan(encode_plan(made), "plan") == made
    names = [device for group in made.groups for stage in group.stages for device in stage.primary]
    assert len(set(names)) == len(names)
    for name, used in used_bytes(made).items():
        assert used <= made.cluster.device(name).memory_bytes
    for stage in (stage for group in made.groups for stage in group.stages):
        nodes = {made.cluster.device(name).node for name in stage.primary}
        assert len(nodes) == 1 and made.model.shape.kv_heads % len(stage.primary) == 0
        held = min(pool.pages for pool in stage.pools) * len(stage.primary) // made.model.shape.kv_heads * made.page_tokens
        assert held >= made.limits.max_model_len
    shares: dict[int, float] = defaultdict(float)
    for arc in made.flow:
        assert (made.groups[arc.source].role, made.groups[arc.target].role) == ("prefill", "decode")
        shares[arc.source] += arc.share
    assert shares == pytest.approx({number: 1.0 for number, group in enumerate(made.groups) if group.role == "prefill"})
    told = " ".join(made.notes)
    for device in made.cluster.devices:
        assert device.name in told and (device.name in names or f"{device.name}: left out" in told)
    assert "requests/s at the mean lengths; the bottleneck is " in told and "upper bound: " in told and "a gap of " in told


@pytest.mark.parametrize("slower", [None, 2.0, 12.0, 70.0])
def test_two_devices_are_one_of_each_and_can_be_run(slower) -> None:
    row_s = {"amx": 2e-7 * 64, "avx2": (slower or 1.0) * 2e-7 * 64}
    made = plan_hexgen2(PAIR, MODEL, LONG, Options(profile=profile(MODEL, PAIR, row_s) if slower else None), LITTLE)
    check(made)
    assert [group.role for group in made.groups] == ["prefill", "decode"]
    assert config_from_plan(made).groups and all(group.requests_per_s > 0 for group in made.groups)


def test_the_papers_cluster() -> None:
    made = plan_hexgen2(load_cluster("hexgen2-het1", HOST), LLAMA_13B, CHAT, Options(), LITTLE)
    check(made)
    assert {group.role for group in made.groups} == {"prefill", "decode"} and len(made.groups) > 2
    groups = config_from_plan(made).groups
    assert [[one.ranks for one in each.stages] for each in groups] == [[len(one.primary) for one in each.stages] for each in made.groups]
    assert all("roofline" not in stage.cost.source for each in groups for stage in each.stages)


def test_ablations_and_the_fastest_prefill_say_so() -> None:
    over = load_cluster("hetis-testbed", HOST)
    for search in (Search("random", effort=100), Search("genetic", effort=100), Search(effort=100, fastest_prefill=True)):
        made = plan_hexgen2(over, LLAMA_13B, CHAT, Options(), search)
        check(made)
        assert f"found by {search.method} search" in made.notes[2]
        assert f"prefill strategies by {'rate' if search.fastest_prefill else 'latency'}" in made.notes[2]


def test_prefill_strategies_by_rate_are_taken_where_they_pay(monkeypatch) -> None:
    over, told = load_cluster("hetis-testbed", HOST), {}
    for pays in (0.01, 1e9):
        monkeypatch.setattr(find, "PAYS", pays)
        made = plan_hexgen2(over, rows.model("Llama-2-70B"), Workload(1155.0, 211.0), Options(max_model_len=4096), LITTLE)
        check(made)
        told[pays] = sum(group.requests_per_s for group in made.groups if group.role == "decode"), "then all by rate" in made.notes[2]
    assert told[0.01][1] and not told[1e9][1]
    assert told[0.01][0] > 1.01 * told[1e9][0]


@pytest.mark.parametrize("declared", [(), (Link("h100-0", "a100-1", 1e-5, 2e9), Link("l40-0", "l40-1", 1e-5, 2e9))])
def test_a_site_shares_the_links_that_the_cluster_says_are_shared(declared) -> None:
    over = replace(load_cluster("hexgen2-het1", HOST), links=declared)
    found = site_of(open_case(over, LLAMA_13B, CHAT, Options()))
    for a, b in product(range(len(found)), repeat=2):
        here, there = int(found.nodes[a]), int(found.nodes[b])
        ways = () if here == there or found.alone[a, b] else (("out of", here), ("into", there))
        shared = {f"{way} {found.machines[machine]}": float(found.outside_bytes_per_s[machine]) for way, machine in ways}
        assert shared == over.shared(found.names[a], found.names[b])
    assert np.isinf(site_of(open_case(PAIR, MODEL, LONG, Options())).outside_bytes_per_s).all()


def test_users_wishes_are_kept() -> None:
    made = plan_hexgen2(load_cluster("h100x8", HOST), LLAMA_13B, CHAT, Options(max_model_len=4096, max_seqs=32), LITTLE)
    check(made)
    assert (made.limits.max_model_len, made.limits.max_seqs) == (4096, 32)
    with pytest.raises(ResourceError, match="at most 16384 tokens"):
        plan_hexgen2(PAIR, MODEL, LONG, Options(max_model_len=20000))
    with pytest.raises(UsageError, match="no search called 'tabu'"):
        plan_hexgen2(PAIR, MODEL, LONG, Options(), Search("tabu"))


def test_what_does_not_fit_is_told() -> None:
    for over in (cluster({"only": ("amx", 8.0)}), cluster({"fast": ("amx", 1.0), "small": ("amx", 0.1)})):
        with pytest.raises(ResourceError, match="twice, once for prompts and once for decoding"):
            plan_hexgen2(over, MODEL, LONG, Options())


def test_costs_are_those_of_the_simulator() -> None:
    case = open_case(PAIR, MODEL, LONG, Options())
    costs, whole = costs_of(case), (0, MODEL.layers)
    step = case.step("slow", whole, "bfloat16")
    kind = int(site_of(case).kinds[1])
    decode = costs.decode(Ranks(kind, 1), 8, 8 * 1300.0)
    assert decode.fixed_s + MODEL.layers * decode.layer_s + decode.head_s == pytest.approx(step.step_s(8, 8, 8 * 1300, 0.0))
    prefill = costs.prefill(Ranks(kind, 1), 1000.0)
    assert prefill.fixed_s + MODEL.layers * prefill.layer_s + prefill.head_s == pytest.approx(step.step_s(1000, 1, 0, 500_000.0))
    chunked = costs.prefill(Ranks(kind, 1), 2048.0)
    two_s = 2 * step.step_s(1024, 0, 0, 1024**2.0)
    assert chunked.fixed_s + MODEL.layers * chunked.layer_s == pytest.approx(two_s)


def test_bytes_are_those_of_the_budget() -> None:
    case = open_case(PAIR, MODEL, LONG, Options())
    costs = costs_of(case)
    for layers in ((0, 16), (0, 5), (3, 9), (9, 16)):
        held = costs.bytes(Ranks(0, 1))
        count = layers[1] - layers[0]
        used = held.fixed + held.layer * count + held.first * (layers[0] == 0) + held.last * (layers[1] == 16)
        assert used == pytest.approx(1.0 * GIB - case.primary_room("fast", layers, "bfloat16"), rel=1e-9)
    shared, two, one = costs.bytes(Ranks(0, 4)), *(case.costs.weight_bytes("fast", (1, last), "bfloat16", 4) for last in (3, 2))
    assert shared.layer == two - one and 0.1 * costs.bytes(Ranks(0, 1)).fixed < shared.fixed < costs.bytes(Ranks(0, 1)).fixed


def test_ranks_cost_what_the_simulator_has_them_cost() -> None:
    """Over the links of their own host: the same GPU in two kinds of hosts is of two kinds, and each kind's example has most mates."""
    over = load_cluster("hetis-testbed", HOST)
    case = open_case(over, LLAMA_13B, CHAT, Options(max_model_len=1024))
    costs = costs_of(case)
    assert costs.examples == ("a100-0", "3090-a-0", "p100-0")
    found, step = costs.decode(Ranks(0, 4), 32, 32 * 800.0), case.step("a100-0", (0, 40), "bfloat16", 4)
    assert found.fixed_s + 40 * found.layer_s + found.head_s == pytest.approx(step.step_s(32, 32, 32 * 800, 0.0, 32))
    used = costs.bytes(Ranks(0, 4))
    assert used.fixed + 40 * used.layer + used.first + used.last == pytest.approx(72 * GIB - case.primary_room("a100-0", (0, 40), "bfloat16", 4))
    nodes = [replace(node, inside=Wire(5e-6, 56e9, "nvlink-bridge-112")) if node.name == "host-3090-1" else node for node in over.nodes]
    lone = [device for device in over.devices if device.name not in ("p100-1", "a100-3")]
    mixed = open_case(replace(over, nodes=tuple(nodes), devices=(*lone[-1:], *lone[:-1])), LLAMA_13B, CHAT, Options(max_model_len=1024))
    assert costs_of(mixed).examples == ("p100-3", "a100-0", "3090-a-0", "3090-b-0")


def test_a_cluster_becomes_numbers() -> None:
    case = open_case(load_cluster("hetis-testbed", HOST), LLAMA_13B, CHAT, Options(max_model_len=1024, max_seqs=64))
    site, demand = site_of(case), demand_of(case)
    assert site.kinds.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and site.nodes.tolist() == [0] * 4 + [1] * 2 + [2] * 2 + [3] * 4
    assert site.degrees == ((1, 2, 4, 8),) * 3  # of 40 KV heads
    assert site.bytes_per_s[0, 1] == 25e9 and site.bytes_per_s[0, 4] == 12.5e9 and site.latency_s[4, 6] == 30e-6
    assert (demand.longest, demand.most_sequences, demand.waves, demand.step_tokens) == (1024, 64, 40, 1024)
    assert site_of(open_case(PAIR, MODEL, LONG, Options())).degrees == ((1,), (1,))
