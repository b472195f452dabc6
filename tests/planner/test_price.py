"""What plans cost: prices of files before the catalog's, requests counted once, nothing guessed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_cases import GIB, cluster, model

from hetserve.catalog import rows
from hetserve.planner.hexgen2.plan import plan_hexgen2
from hetserve.planner.hexgen2.search import Search
from hetserve.planner.options import Options
from hetserve.planner.price import bill, hourly, price_of, requests_per_s
from hetserve.planner.uniform import plan_uniform
from hetserve.spec.cluster import Cluster, Device, Host
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Flow, Group, Plan
from hetserve.spec.workload import Workload

HOST = Host((0, 1), 2**33, "avx2")
LOAD = Workload(1000.0, 250.0)
CPU = plan_uniform(cluster({"a": ("amx", 1.0)}), model(), None, Options(max_model_len=512))


def gpu(name: str, kind: str = "A100-SXM-80GB", price: float | None = None) -> Device:
    return Device(name, "cuda", (0,), "", 72 * GIB, gpu=kind, price_per_hour=price)


def plan(groups: list[tuple[str, float]], flow: tuple[Flow, ...] = (), devices: tuple[Device, ...] = ()) -> Plan:
    """Groups of a role and a rate; the first devices do them, one each."""
    over = devices or tuple(gpu(f"d{n}", price=1.0) for n in range(len(groups)))
    made = []
    for (role, rate), device in zip(groups, over, strict=False):
        stage = CPU.groups[0].stages[0]
        pool = replace(stage.pools[0], device=device.name)
        made.append(Group(role, (replace(stage, primary=(device.name,), pools=(pool,)),), rate))
    return replace(CPU, cluster=Cluster("made up", (0,), over), groups=tuple(made), flow=flow)


def test_the_files_price_comes_before_the_catalogs() -> None:
    listed = rows.price("A100")
    assert listed is not None
    told = price_of(gpu("a"))
    assert told is not None and told.usd_per_hour == listed.usd_per_hour and told.source.startswith("market, listed: RunPod")
    own = price_of(gpu("a", price=1.75))
    assert own is not None and (own.usd_per_hour, own.source) == (1.75, "the cluster file")
    hyper = price_of(gpu("t", "T4-16GB"))  # no market price
    assert hyper is not None and hyper.source.startswith("hyperscaler, recalled")
    assert price_of(gpu("p", "P100-PCIe-12GB")) is None and price_of(gpu("x", "no such GPU")) is None and price_of(gpu("x", "")) is None


def test_dollars_for_tokens() -> None:
    """Two groups of 2 requests/s at 1 $/h each, and a device left out at 2 $/h."""
    devices = (gpu("d0", price=1.0), gpu("d1", price=1.0), gpu("idle", price=2.0))
    paid = bill(plan([("mixed", 2.0), ("mixed", 2.0)], devices=devices), LOAD)
    assert paid.requests_per_s == 4.0
    assert (paid.cluster.devices, paid.cluster.usd_per_hour, paid.used.devices, paid.used.usd_per_hour) == (3, 4.0, 2, 2.0)
    # 4 $/h over 4 * 250 tokens/s is 4 / 3.6 M tokens
    assert paid.cluster.usd_per_million_output_tokens == pytest.approx(4 / 3.6)
    assert paid.cluster.usd_per_million_tokens == pytest.approx(4 / 3.6 / 5)
    assert paid.used.usd_per_million_output_tokens == pytest.approx(2 / 3.6)
    assert paid.prices == ("2 x A100-SXM-80GB at 1 $/h (the cluster file)", "1 x A100-SXM-80GB at 2 $/h (the cluster file)")


def test_a_load_that_does_not_fill_the_plan_pays_for_it_all() -> None:
    half = bill(plan([("mixed", 4.0)]), replace(LOAD, request_rate=2.0))
    full = bill(plan([("mixed", 4.0)]), LOAD)
    assert half.requests_per_s == 2.0
    assert half.cluster.usd_per_million_tokens == pytest.approx(2 * (full.cluster.usd_per_million_tokens or 0))


@pytest.mark.parametrize(
    ("groups", "flow", "expected"),
    [
        ([("mixed", 1.5), ("mixed", 2.0)], (), 3.5),
        ([("prefill", 5.0), ("decode", 3.0)], (Flow(0, 1, 1.0),), 3.0),
        ([("prefill", 2.0), ("decode", 3.0), ("mixed", 1.0)], (Flow(0, 1, 1.0),), 3.0),
        ([("prefill", 5.0), ("decode", 3.0)], (), 3.0),  # nobody says who sends to whom
        # group 0 sends half to a slow group: it serves 2, not 4; group 1 fills the other
        ([("prefill", 4.0), ("prefill", 1.0), ("decode", 1.0), ("decode", 9.0)], (Flow(0, 2, 0.5), Flow(0, 3, 0.5), Flow(1, 3, 1.0)), 3.0),
        ([("prefill", 4.0), ("prefill", 1.0), ("decode", 9.0)], (Flow(0, 2, 1.0),), 4.0),  # group 1 sends to nobody
        ([("mixed", 1.5), ("mixed", 0.0)], (), None),  # a group that does not say
    ],
)
def test_each_request_counts_once(groups, flow, expected) -> None:
    told = requests_per_s(plan(groups, flow))
    assert told == expected if expected is None else told == pytest.approx(expected)


def test_what_hexgen2_predicts_is_what_is_paid_for() -> None:
    """Where links between groups limit nothing."""
    over, search = load_cluster("h100x8", HOST), Search(effort=50, starts=1)
    made = plan_hexgen2(over, model(8), LOAD, Options(max_model_len=1500), search)
    (predicted,) = [float(note.split()[1]) for note in made.notes if note.startswith("predicted: ")]
    assert bill(made, LOAD).requests_per_s == pytest.approx(predicted, rel=1e-3)


def test_links_that_limit_are_told() -> None:
    made = plan([("prefill", 5.0), ("decode", 3.0)], (Flow(0, 1, 1.0),))
    note = "predicted: 2 requests/s at the mean lengths; the bottleneck is the links from group 0 to group 1"
    assert not bill(made, LOAD).links_limit and bill(replace(made, notes=(note,)), LOAD).links_limit


def test_what_has_no_price_is_named_and_no_token_has_one() -> None:
    devices = (gpu("d0", price=1.0), gpu("p100", "P100-PCIe-12GB"))
    paid = bill(plan([("mixed", 2.0)], devices=devices), LOAD)
    assert paid.cluster.unpriced == ("p100",) and paid.cluster.usd_per_hour == 1.0
    assert paid.cluster.usd_per_million_tokens is None and paid.used.usd_per_million_tokens is not None  # the device used has one
    silent = bill(plan([("mixed", 0.0)]), LOAD)
    assert silent.requests_per_s is None and silent.used.usd_per_million_output_tokens is None


def test_the_papers_budgets() -> None:
    """29.52 $/h for 8 H100, 26.3 to 28.8 for settings 1 to 4, 20.5 for setting 5 (papers/hexgen2.md 6.1)."""
    costs = {name: hourly(load_cluster(name, HOST)) for name in ("h100x8", "helix-24", *(f"hexgen2-het{n}" for n in range(1, 6)))}
    assert not any(paid.unpriced for paid in costs.values())
    assert costs["h100x8"].usd_per_hour == pytest.approx(29.52)
    assert all(26.3 <= costs[f"hexgen2-het{n}"].usd_per_hour <= 28.8 for n in range(1, 5))
    assert costs["hexgen2-het5"].usd_per_hour == pytest.approx(20.5, abs=0.05)
    assert costs["helix-24"].devices == 24
