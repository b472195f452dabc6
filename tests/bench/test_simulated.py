"""A plan run from the library: the same run gives the same result, and devices are busy for as long as what they did takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hetserve.bench.simulated import Simulation, assemble, summary
from hetserve.planner.options import Options
from hetserve.sim.executor import Arrival
from hetserve.sim.faults import Fault
from hetserve.spec.cluster import Cluster, Device
from hetserve.spec.links import Link, Node, Wire
from hetserve.spec.model import ModelSpec
from hetserve.spec.plan import Flow, Group, Online, Plan
from hetserve.systems import system

MODEL = ModelSpec.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 320,
        "max_position_embeddings": 512,
        "dtype": "bfloat16",
    },
    None,
    "small",
)
GIB = 2**30
CLUSTER = Cluster("pair", (0,), (Device("slow", "cpu", (0,), "avx2", 2 * GIB), Device("fast", "cpu", (1,), "amx", 1 * GIB)))
ARRIVALS = [Arrival(0.01 * number, 20 + number, 5) for number in range(30)]


def planned(name: str = "uniform") -> Plan:
    return system(name).planner(CLUSTER, MODEL, None, Options(max_seqs=8))


def run(plan: Plan, faults=(), arrivals=ARRIVALS) -> Simulation:
    done = assemble(plan, arrivals, faults)
    done.run()
    return done


def test_the_same_run_gives_the_same_result() -> None:
    first, again = (summary(run(planned("splitwise")), 100.0, 1.0, (50.0, 99.0), {"ttft": 1e9}) for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    assert (first["completed"], first["failed"], first["total_output_tokens"]) == (30, 0, 150)
    assert (first["kind"], first["request_rate"], first["system"]) == ("simulated", 100.0, "splitwise")
    assert first["request_goodput"] == first["request_throughput"] and first["moves"] == 30


def test_what_a_device_was_busy_with() -> None:
    """Every step takes the stage with more layers longer."""
    plan = planned()
    (group,) = plan.groups
    (stage,) = group.stages
    cut = (replace(stage, layers=(0, 1)), replace(stage, layers=(1, 4), primary=("slow",), pools=(replace(stage.pools[0], device="slow"),)))
    done = run(replace(plan, groups=(replace(group, stages=cut),)))
    busy_s = done.busy_s()
    assert set(busy_s) == {"slow", "fast"} and 0 < busy_s["fast"] < busy_s["slow"] < done.lasted_s
    alone, slowed = (run(plan, faults, ARRIVALS[:1]).busy_s() for faults in ((), [Fault(0.0, "fast", 3.0)]))
    assert set(alone) == {"fast"} and slowed["fast"] == pytest.approx(3 * alone["fast"])


def test_what_an_attention_worker_was_busy_with() -> None:
    """It attends while its primary's stage works, never longer; where it has no heads, it does nothing."""
    plan = planned()
    (group,) = plan.groups
    (stage,) = group.stages
    with_worker = replace(stage, attention=("slow",), pools=(*stage.pools, replace(stage.pools[0], device="slow")))
    plan = replace(plan, groups=(replace(group, stages=(with_worker,)),))
    spread, at_home = (run(replace(plan, online=Online(heads))) for heads in ("even", "on_group"))
    assert 0 < spread.busy_s()["slow"] < spread.busy_s()["fast"] and at_home.busy_s()["slow"] == 0
    (attended_s,) = (one.attended_s for one in spread.executor.groups)
    slowed = run(replace(plan, online=Online("even")), [Fault(0.0, "slow", 2.0)], ARRIVALS[:1]).busy_s()["slow"]
    once = run(replace(plan, online=Online("even")), (), ARRIVALS[:1]).busy_s()["slow"]
    assert once < slowed <= 2 * once and attended_s[1] == spread.busy_s()["slow"]


def test_hidden_states_take_their_time_from_stage_to_stage() -> None:
    """Over a link of 1 MB/s a prompt of 400 tokens takes 51.2 ms longer."""
    plan = planned()
    (group,) = plan.groups
    (stage,) = group.stages
    cut = (replace(stage, layers=(0, 2)), replace(stage, layers=(2, 4), primary=("slow",), pools=(replace(stage.pools[0], device="slow"),)))
    piped = replace(plan, groups=(replace(group, stages=cut),))
    ends_s = {}
    for speed in (1e12, 1e6):
        links = tuple(Link(*ends, 0.0, speed) for ends in (("fast", "slow"), ("slow", "fast")))
        done = run(replace(piped, cluster=replace(CLUSTER, links=links)), arrivals=[Arrival(0.0, 400, 1)])
        ((outcome,),) = done.executor.outcomes
        ends_s[speed] = outcome.token_s[0]
    assert ends_s[1e6] - ends_s[1e12] == pytest.approx(400 * 64 * 2 / 1e6, rel=1e-3)


def test_an_infinite_rate_is_said_in_a_word() -> None:
    assert summary(run(planned()))["request_rate"] == "inf"


def test_transfers_between_two_nodes_share_what_these_send_and_receive() -> None:
    """Two prompts at a time in two groups of one node, each handed to a group of its own on another: their KV takes twice as long as one's."""
    wire = Node("a", None, Wire(0.0, 1e5)), Node("b", None, Wire(0.0, 1e5))
    devices = tuple(Device(name, "cpu", (0,), "avx2", GIB, node=name[0]) for name in ("a0", "a1", "b0", "b1"))
    plan = planned()
    (group,) = plan.groups
    (stage,) = group.stages

    def on(device: str, role: str) -> Group:
        return replace(group, role=role, stages=(replace(stage, primary=(device,), pools=(replace(stage.pools[0], device=device),)),))

    groups = on("a0", "prefill"), on("a1", "prefill"), on("b0", "decode"), on("b1", "decode")
    plan = replace(plan, cluster=Cluster("two", (0,), devices, wire), groups=groups, flow=(Flow(0, 2, 1.0), Flow(1, 3, 1.0)))
    pauses_s = []
    for count in (1, 2):
        done = run(plan, arrivals=[Arrival(0.0, 400, 2)] * count)
        times = [one.token_s for (one,) in done.executor.outcomes]
        pauses_s.append(max(later - first for first, later in times))
    size_bytes = 400 // 16 * 2 * stage.pools[0].page_bytes
    assert pauses_s[0] == pytest.approx(size_bytes / 1e5, rel=0.02) and pauses_s[1] == pytest.approx(2 * pauses_s[0], rel=0.02)


def test_a_run_says_whether_it_keeps_up() -> None:
    """30 requests of 5 tokens: at a leisurely rate all that is due was told, in a burst next to nothing."""
    calm, burst = (summary(run(planned(), arrivals=[Arrival(gap_s * number, 40, 5) for number in range(30)]), 1 / gap_s) for gap_s in (1.0, 1e-4))
    assert calm["output_share"] == 1 and calm["saturated"] is False
    assert burst["output_share"] < 0.2 and burst["saturated"] is True
    at_once = summary(run(planned(), arrivals=[Arrival(0.0, 40, 5)] * 30))
    assert at_once["output_share"] is None and at_once["saturated"] is None


def test_requests_that_are_refused_are_due_all_the_same() -> None:
    """The second is longer than the plan takes: one of two is within all limits, and half of what is due was told."""
    done = summary(run(planned(), arrivals=[Arrival(0.0, 40, 9), Arrival(1.0, 600, 9), Arrival(2.0, 40, 1)]), 1.0, goodput_ms={"ttft": 1e9})
    assert (done["completed"], done["failed"]) == (2, 1)
    assert done["slo_attainment"] == pytest.approx(2 / 3) and done["output_share"] == pytest.approx(9 / 18)


def test_devices_that_a_plan_leaves_out_are_idle() -> None:
    assert summary(run(planned()))["utilisation"]["slow"] == 0.0
