"""Planners on clusters of GPUs nobody here owns: ranks inside nodes, budgets kept, phases whose rates match, planning time, and agreement with the
simulator."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from large_cases import large

from hetserve.bench.simulated import Simulation, assemble
from hetserve.catalog import rows
from hetserve.control.config import config_from_plan
from hetserve.cost.costs import Costs
from hetserve.errors import ResourceError
from hetserve.planner.alike import total, ways
from hetserve.planner.case import Case, open_case
from hetserve.planner.draft import Part, finish, stage
from hetserve.planner.estimate import attention_s, load
from hetserve.planner.hetis import exclude
from hetserve.planner.hexgen2.find import found_of, network_of
from hetserve.planner.hexgen2.network import Layout
from hetserve.planner.hexgen2.plan import flow_of, groups_of
from hetserve.planner.hexgen2.search import Progress, Search
from hetserve.planner.hexgen2.site import DECODE, PREFILL
from hetserve.planner.kinds import degrees, kind_of, named, rank_sets
from hetserve.planner.options import Options
from hetserve.planner.pipeline import pipeline
from hetserve.sim.executor import Arrival
from hetserve.spec.cluster import Cluster
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Plan, decode_plan, encode_plan
from hetserve.spec.workload import Workload
from hetserve.systems import system

CHAT = Workload(512.0, 128.0)
NAMED = ("hetis-testbed", "h100x8", "hexgen2-het1")
PLANNERS = ("hetis", "uniform", "splitwise", "distserve")


def file(name: str) -> Cluster:
    return load_cluster(f"workloads/clusters/{name}.toml")


def case(on: Cluster, model: str = "Llama-2-70B", work: Workload = CHAT) -> Case:
    return open_case(on, rows.model(model), work, Options())


def plan(name: str, on: Cluster, model: str = "Llama-2-70B", **options) -> Plan:
    return system(name).planner(on, rows.model(model), CHAT, Options(**options))


def kinds(made: Plan, role: str) -> set[str]:
    return {made.cluster.device(name).gpu for group in made.groups if group.role == role for one in group.stages for name in one.primary}


@pytest.mark.parametrize(
    ("on", "model"), [("hetis-testbed", "Llama-13B"), ("hetis-testbed", "Llama-2-70B"), ("h100x8", "OPT-30B"), ("hexgen2-het1", "OPT-30B")]
)
@pytest.mark.parametrize("name", PLANNERS)
def test_ranks_are_alike_budgets_are_kept_and_every_device_is_accounted_for(name, on, model) -> None:
    made = plan(name, file(on), model)
    assert decode_plan(encode_plan(made), "plan") == made and config_from_plan(made).groups
    costs, limits, used, owner = Costs(made.model.shape, made.model.dtype, made.cluster), made.limits, defaultdict(int), {}
    for number, group in enumerate(made.groups):
        assert group.requests_per_s > 0
        for one in group.stages:
            ranks, devices = len(one.primary), [made.cluster.device(device) for device in one.primary]
            assert len({(kind_of(device), device.node) for device in devices}) == 1 and made.model.shape.kv_heads % ranks == 0
            for pool in one.pools:
                assert owner.setdefault(pool.device, number) == number
                used[pool.device] += pool.pages * pool.page_bytes
            where, step = (one.layers, one.weights), (limits.max_step_tokens, limits.max_seqs, 0, ranks)
            for device in one.primary:
                used[device] += costs.weight_bytes(device, *where, ranks) + costs.workspace_bytes(device, *where, *step)
            assert one.pools[0].pages // (made.model.shape.kv_heads // ranks) * made.page_tokens >= limits.max_model_len
    assert all(size <= made.cluster.device(device).memory_bytes for device, size in used.items())
    said = " ".join(made.notes)
    assert all(device.name.rpartition("-")[0] in said for device in made.cluster.devices) and "bottleneck" in said
    (gap,) = re.findall(r"upper bound: .* requests/s, a gap of (-?[0-9.]+)%", said)
    assert 0 <= float(gap) < 95


def test_what_ranks_a_model_and_a_node_allow() -> None:
    het1, testbed = case(file("hexgen2-het1")), case(file("hetis-testbed"))
    assert degrees(het1, "a100-0") == (1, 2, 4, 8) and degrees(case(file("h100x8"), "Llama-13B"), "h100-0") == (1, 2, 4, 8)
    a100s = [f"a100-{number}" for number in range(6)]
    assert [len(one) for one in rank_sets(het1, a100s, 4)] == [4, 2]
    r3090s = [f"3090-{host}-{number}" for host in "ab" for number in range(2)]
    assert rank_sets(testbed, r3090s, 8) == [("3090-a-0", "3090-a-1"), ("3090-b-0", "3090-b-1")]
    assert named([*a100s, "l40", "b-7", "b-8"]) == "a100-0 to a100-5, l40, b-7, b-8"


def test_each_rank_attends_to_its_own_heads_and_workers_to_any() -> None:
    one = case(file("hetis-testbed"))
    a100s, more = tuple(f"a100-{number}" for number in range(4)), ("3090-a-0", "3090-a-1")
    work = load(one, 64)
    parts = ((a100s[:1], "bfloat16"), (a100s[:2], "bfloat16"), (a100s[:2], "bfloat16", more))
    alone, pair, helped = (stage(one, Part((0, 20), *part)) for part in parts)
    assert alone.pools[0].page_bytes == pair.pools[0].page_bytes and pair.pools[0].pages > alone.pools[0].pages
    alone_s, pair_s, helped_s = (attention_s(one, each, work) for each in (alone, pair, helped))
    assert pair_s == pytest.approx(alone_s / 2, rel=0.15), "half the heads each, side by side"
    assert helped_s <= pair_s
    small = replace(helped, pools=(*helped.pools[:2], *(replace(pool, pages=8) for pool in helped.pools[2:])))
    assert helped_s <= attention_s(one, small, work) <= pair_s * 1.001, "workers as small as a page a head hardly help"


def test_hetis_rule_on_the_papers_testbed() -> None:
    """What our costs make of it; the paper has A100 and 3090 as primaries, P100 as attention workers."""
    removed = [one.device for one in exclude(case(file("hetis-testbed")), [device.name for device in file("hetis-testbed").devices], 0.05)]
    assert removed and all(name.startswith("p100") for name in removed)


def test_hetis_gives_instances_the_same_devices_in_the_same_roles() -> None:
    made = plan("hetis", large(8), "Llama-13B")
    device = made.cluster.device
    shapes = {tuple((one.layers, len(one.primary), device(one.primary[0]).gpu, len(one.attention)) for one in group.stages) for group in made.groups}
    assert len(made.groups) > 1 and len(shapes) == 1
    testbed = plan("hetis", file("hetis-testbed"), "OPT-30B")
    assert any(note.startswith("p100-0 to p100-3: ") for note in testbed.notes), "one reason for the same place in every instance"


def test_a_deeper_exclusion_leaves_fewer_primaries() -> None:
    few, many = (plan("hetis", file("hetis-testbed"), delta=delta) for delta in (10.0, 0.0))
    assert kinds(few, "mixed") == {"A100-SXM-80GB"} <= kinds(many, "mixed")


def test_uniform_is_the_best_of_one_kind() -> None:
    made = plan("uniform", file("hexgen2-het1"))
    assert len(kinds(made, "mixed")) == 1
    one = case(file("hexgen2-het1"))
    best = {kind: max((total(way) for way in ways(one, names)), default=0.0) for kind, names in of_kind(one.cluster).items()}
    assert best[kinds(made, "mixed").pop()] == max(best.values()) == pytest.approx(sum(group.requests_per_s for group in made.groups))


def of_kind(on: Cluster) -> dict[str, list[str]]:
    return {gpu: [device.name for device in on.devices if device.gpu == gpu] for gpu in dict.fromkeys(device.gpu for device in on.devices)}


@pytest.mark.parametrize("on", NAMED)
@pytest.mark.parametrize("name", ["splitwise", "distserve"])
def test_phases_serve_equally_much_and_hand_over_everything(name, on) -> None:
    made = plan(name, file(on), "Llama-13B")
    rate = {role: sum(group.requests_per_s for group in made.groups if group.role == role) for role in ("prefill", "decode")}
    assert rate["prefill"] == pytest.approx(rate["decode"])
    for number in (number for number, group in enumerate(made.groups) if group.role == "prefill"):
        assert sum(arc.share for arc in made.flow if arc.source == number) == pytest.approx(1)
    if name == "distserve":
        assert len(kinds(made, "prefill")) == len(kinds(made, "decode")) == 1


def test_splitwise_has_the_fast_kinds_for_prompts() -> None:
    made = plan("splitwise", file("hetis-testbed"), "Llama-13B")
    assert "A100-SXM-80GB" in kinds(made, "prefill") and not kinds(made, "prefill") & kinds(made, "decode")
    divided = plan("splitwise", file("hetis-testbed"), "Llama-2-70B")
    assert "either phase" in divided.notes[0] and "A100-SXM-80GB" in kinds(divided, "prefill") & kinds(divided, "decode")


def test_a_link_that_carries_little_is_the_bottleneck() -> None:
    """All KV leaves one host; it goes to several."""
    over = file("hetis-testbed")
    slow = replace(over, nodes=tuple(replace(node, outside=replace(node.outside, bytes_per_s=5e7)) for node in over.nodes))
    fast, made = plan("splitwise", over, "Llama-13B"), plan("splitwise", slow, "Llama-13B")
    rates = [sum(group.requests_per_s for group in one.groups if group.role == "decode") for one in (fast, made)]
    assert "the link out of host-a100" in made.notes[0] and rates[1] < rates[0] / 5


def test_what_holds_no_model_is_told_by_kind() -> None:
    tiny = replace(file("h100x8"), devices=tuple(replace(device, memory_bytes=16589 * 2**20) for device in file("h100x8").devices))
    for name in PLANNERS:
        with pytest.raises(ResourceError, match="h100-0 to h100-7 16,589 MiB each"):
            plan(name, tiny)


@pytest.mark.parametrize(("on", "most_s"), [("hetis-testbed", 1.0), ("large", 4.0)])
def test_hetis_plans_quickly(on, most_s) -> None:
    """Of processor time; the paper needed 4 s and 15 s. On a quiet core it takes about 0.2 s and 1.5 s."""
    over = large() if on == "large" else file(on)
    began_s = time.process_time()
    plan("hetis", over)
    assert time.process_time() - began_s < most_s


def run(made: Plan, requests: int) -> Simulation:
    """All requests are there from the start."""
    draw = np.random.default_rng(1)
    lengths = [np.maximum(1, mean * draw.uniform(0.5, 1.5, requests)).astype(int).tolist() for mean in (CHAT.input_tokens, CHAT.output_tokens)]
    done = assemble(made, [Arrival(number * 1e-6, *both) for number, both in enumerate(zip(*lengths, strict=True))])
    done.run()
    return done


def simulated(made: Plan, requests: int) -> float:
    """Requests per second in the middle of a run."""
    ends = sorted(one.token_s[-1] for choices in run(made, requests).executor.outcomes for one in choices)
    first, last = int(0.3 * requests), int(0.75 * requests)
    return (last - first) / (ends[last] - ends[first])


@pytest.mark.parametrize(("stages", "ranks"), [(1, 4), (4, 2)])
def test_pipelines_of_ranks_serve_as_much_as_the_simulator_makes_of_them(stages, ranks) -> None:
    one = case(file("h100x8"))
    group = pipeline(one, rank_sets(one, one.names[: stages * ranks], ranks))
    assert [len(each.primary) for each in group.stages] == [ranks] * stages
    assert simulated(finish(one, "uniform", [group], []), 1200) == pytest.approx(group.requests_per_s, rel=0.1)


def test_attention_workers_serve_as_much_as_the_simulator_makes_of_them() -> None:
    """The paper's ablation (7.3): one A100 and two RTX 3090. Here its rule takes the latter out for whatever it costs."""
    over = file("hetis-testbed")
    few = replace(over, devices=tuple(device for device in over.devices if device.name in ("a100-0", "3090-a-0", "3090-a-1")))
    made = plan("hetis", few, "Llama-13B", delta=10.0)
    ((one,),) = (group.stages for group in made.groups)
    assert one.primary == ("a100-0",) and sorted(one.attention) == ["3090-a-0", "3090-a-1"]
    assert simulated(made, 700) == pytest.approx(made.groups[0].requests_per_s, rel=0.1)


def test_phases_apart_serve_as_much_as_the_simulator_makes_of_them() -> None:
    made = plan("distserve", file("hetis-testbed"), "Llama-13B")
    assert simulated(made, 1000) == pytest.approx(sum(group.requests_per_s for group in made.groups if group.role == "decode"), rel=0.1)


def test_a_hosts_link_that_groups_share_carries_as_much_in_the_simulator() -> None:
    over = file("hexgen2-het1")
    slow = replace(over, nodes=tuple(replace(node, outside=replace(node.outside, bytes_per_s=5e8)) for node in over.nodes))
    one = case(slow, "Llama-13B")
    network = network_of(one, Search())
    at = {name: number for number, name in enumerate(network.site.names)}
    sides = ["h100-0"], ["h100-1"], ["a100-0", "a100-1"], ["l40-0", "l40-1"]
    layout = Layout(tuple(tuple(at[name] for name in side) for side in sides), (PREFILL, PREFILL, DECODE, DECODE))
    found = found_of(network, network.solve(layout), Progress(0), "")
    assert found.outcome.cut == ("out of host-h100",) and found.outcome.total < 0.2 * network.most(layout, network.rates(layout))
    made = finish(one, "hexgen2", groups_of(one, found), [], flow=flow_of(found.outcome))
    assert 100 / run(made, 100).lasted_s == pytest.approx(found.outcome.total, rel=0.1)  # the link is busy from the first to the last prompt
