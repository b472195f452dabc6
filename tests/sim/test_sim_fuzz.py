"""Random clusters, plans, workloads and faults: every system's plans run to the end, and nothing is lost or held twice on the way."""

from __future__ import annotations

import random
import tomllib
from collections import Counter

import pytest

from hetserve.bench.simulated import Simulation, assemble
from hetserve.catalog import rows
from hetserve.catalog.drawn import cluster_toml, draw
from hetserve.errors import HetserveError
from hetserve.planner.options import Options
from hetserve.sim.executor import Arrival
from hetserve.sim.faults import LOST, Fault
from hetserve.spec.cluster import parse_cluster
from hetserve.spec.load import this_host
from hetserve.spec.workload import Workload
from hetserve.systems import SYSTEMS, system

KINDS = ("H100-SXM-80GB", "A100-SXM-80GB", "L40-48GB", "RTX-3090-24GB", "P100-PCIe-12GB")
MODELS = ("Llama-3-8B", "Llama-2-13B", "OPT-30B")
EVERY = 7  # events between two checks


def life(seed: int) -> Simulation | None:
    """A simulation of something drawn at random; None: no layout was found for it."""
    chance = random.Random(seed)
    machines = draw(chance.randint(2, 9), seed, KINDS, most=4)
    cluster = parse_cluster(tomllib.loads(cluster_toml("drawn", machines, "a test")), this_host(), "drawn")
    name, model = chance.choice(sorted(SYSTEMS)), rows.model(chance.choice(MODELS))
    sizes = {"max_seqs": chance.choice([2, 8, 32]), "max_step_tokens": chance.choice([64, 512]), "max_model_len": 600}
    options = Options(kv_memory_bytes=chance.choice([1, 2]) * 2**29, delta=chance.choice([0.05, 10.0]), **sizes)
    try:
        plan = system(name).planner(cluster, model, Workload(150, 60, concurrency=chance.choice([4.0, 40.0])), options)
    except HetserveError:
        return None
    rate = chance.choice([1.0, 10.0, 1e4])
    arrivals, at_s = [], 0.0
    for _ in range(20):
        at_s += chance.expovariate(rate)
        arrivals.append(Arrival(at_s, chance.randint(1, 400), chance.randint(1, 120), chance.choice([1, 1, 1, 2])))
    faults = []
    for device in chance.sample([one.name for one in cluster.devices], chance.randint(0, 2)):
        begin_s = chance.uniform(0, at_s + 2)
        faults.append(Fault(begin_s, device, chance.choice([LOST, 3.0])))
        faults += [Fault(begin_s + chance.uniform(0.1, 3), device, 1.0)] if chance.random() < 0.5 else []
    return assemble(plan, arrivals, sorted(faults, key=lambda one: one.at_s))


@pytest.mark.parametrize("seed", range(18))
def test_everybody_ends_and_nothing_is_lost(seed: int) -> None:
    simulation = life(seed)
    if simulation is None:
        return
    controller, events = simulation.controller, 0

    def check(event, commands) -> None:
        nonlocal events
        events += 1
        if events % EVERY == 0:
            controller.check()

    simulation.run(check)
    controller.check()
    counts = controller.counts()
    assert counts["running"] == counts["waiting"] == 0 and counts["pages_free"] == counts["pages"]
    for arrival, choices in zip(simulation.arrivals, simulation.executor.outcomes, strict=True):
        for outcome in choices:
            assert outcome.reason in ("stop", "length", "error", "rejected")
            assert outcome.token_s == sorted(outcome.token_s) and len(outcome.token_s) <= arrival.output_tokens
            assert outcome.reason not in ("stop", "length") or len(outcome.token_s) == arrival.output_tokens


def test_the_fuzz_reaches_what_it_is_for() -> None:
    """Most draws find a layout, of most systems; groups of several ranks, stages, roles and attention workers are among them."""
    found = [life(seed) for seed in range(18)]
    plans = [one.plan for one in found if one is not None]
    groups = [group for plan in plans for group in plan.groups]
    stages = [stage for group in groups for stage in group.stages]
    assert len(plans) >= 10 and len({plan.system for plan in plans}) >= 5
    reached = Counter(ranks=sum(len(one.primary) > 1 for one in stages), workers=sum(bool(one.attention) for one in stages))
    reached += Counter(stages=sum(len(one.stages) > 1 for one in groups), prefill=sum(one.role == "prefill" for one in groups))
    assert set(reached) == {"ranks", "workers", "stages", "prefill"}, reached
