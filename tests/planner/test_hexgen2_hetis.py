"""HexGen-2 with attention workers: who is enlisted, that it is never worse than without, and that plans keep what every plan promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_cases import cluster, model, profile

from hetserve.planner.case import open_case
from hetserve.planner.enlist import Enlisting
from hetserve.planner.estimate import rate
from hetserve.planner.hexgen2.find import find, network_of
from hetserve.planner.hexgen2.search import Search
from hetserve.planner.hexgen2.site import DECODE
from hetserve.planner.hexgen2_hetis import excluded, plan_hexgen2_hetis
from hetserve.planner.options import Options
from hetserve.spec.cluster import Host
from hetserve.spec.load import load_cluster
from hetserve.spec.plan import Plan, decode_plan, encode_plan
from hetserve.spec.workload import Workload

MODEL = model()
LONG = Workload(1100.0, 400.0)
CHAT = Workload(700.0, 200.0)
HOST = Host((0, 1), 2**33, "avx2")
LITTLE = Search(effort=300, starts=2)
THREE = cluster({"prompts": ("amx", 1.0), "answers": ("amx", 0.7), "weak": ("avx2", 2.0)})
SPEEDS = {"amx": 1.3e-5, "avx2": 1.3e-5 * 70}


def weak(**options) -> Options:
    """A third device that nearly cannot multiply and has the most memory."""
    return Options(profile=profile(MODEL, THREE, SPEEDS), **options)


def check(made: Plan) -> None:
    """One role a device, workers in decode groups only and with room for what the plan gives them, every device told of."""
    assert decode_plan(encode_plan(made), "plan") == made and made.online.heads == "exact" and made.online.theta == 0.5
    case = open_case(made.cluster, made.model.shape, CHAT, Options(profile=made.profile, max_model_len=0))
    primaries = [name for group in made.groups for stage in group.stages for name in stage.primary]
    workers = {name: group for group in made.groups for stage in group.stages for name in stage.attention}
    assert len(set(primaries)) == len(primaries) and not set(primaries) & set(workers)
    for name, group in workers.items():
        assert group.role == DECODE and all(name in stage.attention for stage in group.stages)
        held = sum(pool.pages * pool.page_bytes for one in made.groups for stage in one.stages for pool in stage.pools if pool.device == name)
        assert 0 < held <= case.attention_room(name)
    told = " ".join(made.notes)
    assert all(device.name in primaries or f"{device.name}: left out" in told or device.name in workers for device in made.cluster.devices)
    sent = {
        number: sum(arc.share for arc in made.flow if arc.source == number) for number, group in enumerate(made.groups) if group.role == "prefill"
    }
    assert sent == pytest.approx(dict.fromkeys(sent, 1.0))


def test_a_device_that_cannot_multiply_attends_for_the_decode_group() -> None:
    made = plan_hexgen2_hetis(THREE, MODEL, LONG, weak(), LITTLE)
    check(made)
    assert [group.role for group in made.groups] == ["prefill", "decode"]
    assert [stage.attention for group in made.groups for stage in group.stages] == [(), ("weak",)]
    assert "weak: attention for group 1" in " ".join(made.notes)
    case = open_case(THREE, MODEL, LONG, weak())
    alone = tuple(replace(stage, attention=(), pools=stage.pools[:1]) for stage in made.groups[1].stages)
    assert rate(case, made.groups[1]) > 1.1 * rate(case, replace(made.groups[1], stages=alone))


def test_a_slow_link_leaves_it_out() -> None:
    small = cluster({"prompts": ("amx", 1.0), "answers": ("amx", 0.7), "weak": ("avx2", 0.3)})  # too small for the model, large enough for KV
    known = profile(MODEL, small, SPEEDS)
    far = tuple(replace(link, beta_s=0.05) if "weak" in (link.source, link.target) else link for link in known.links)
    made = plan_hexgen2_hetis(small, MODEL, LONG, Options(profile=replace(known, links=far)), LITTLE)
    check(made)
    assert not any(stage.attention for group in made.groups for stage in group.stages) and "weak: left out" in " ".join(made.notes)


@pytest.mark.parametrize("name", ["hetis-testbed", "hexgen2-het1"])
def test_never_worse_than_without_workers_by_its_own_estimate(name) -> None:
    spec = model(40, hidden_size=5120, num_attention_heads=40, num_key_value_heads=40, intermediate_size=13824)
    over = load_cluster(name, HOST)
    made = plan_hexgen2_hetis(over, spec, CHAT, Options(), LITTLE)
    check(made)
    case = open_case(over, spec, CHAT, Options())
    network = network_of(case, LITTLE)
    found = find(network, LITTLE)
    assert found is not None
    plain = Enlisting(case, network).plain(found.outcome.layout).outcome.total
    assert sum(group.requests_per_s for group in made.groups if group.role == DECODE) >= plain * (1 - 1e-6)
    again = plan_hexgen2_hetis(over, spec, CHAT, Options(), LITTLE)
    assert again == made


def test_who_is_excluded_is_the_papers_rule() -> None:
    over = cluster({f"{name}-{number}": (isa, 8.0) for name, isa in (("a", "amx"), ("b", "avx512"), ("c", "avx2")) for number in range(4)})
    known = profile(MODEL, over, {"amx": 0.06e-4, "avx512": 0.147e-4, "avx2": 1.47e-4})
    network = network_of(open_case(over, MODEL, LONG, Options(profile=known)), Search())
    assert {network.site.names[one][0] for one in excluded(network, 0.05)} == {"c"} and len(excluded(network, 0.05)) == 4
    assert excluded(network, 0.0) == ()


def test_users_wishes_are_kept() -> None:
    made = plan_hexgen2_hetis(THREE, MODEL, LONG, weak(heads="even", theta=None, max_model_len=2048), LITTLE)
    assert (made.online.heads, made.online.theta, made.limits.max_model_len) == ("even", None, 2048)
