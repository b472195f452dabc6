"""Clusters that nothing can be planned for are refused in a sentence, by every system."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planner_cases import cluster, model, profile

from hetserve.catalog import rows
from hetserve.errors import HetserveError, ResourceError, SpecError
from hetserve.planner.case import open_case
from hetserve.planner.options import Options
from hetserve.planner.sound import require_sound
from hetserve.spec.cluster import Cluster, Host, Link, Node
from hetserve.spec.links import Wire
from hetserve.spec.load import cluster_names, load_cluster
from hetserve.systems import SYSTEMS

HOST = Host((0, 1), 2**35, "avx512", (80 * 2**30,))
TESTBED = load_cluster("hetis-testbed", HOST)
LLAMA = rows.model("Llama-2-13B")


def without_outside() -> Cluster:
    return replace(TESTBED, nodes=tuple(replace(node, outside=None) for node in TESTBED.nodes))


def renamed(gpu: str) -> Cluster:
    return replace(TESTBED, devices=tuple(replace(device, gpu=gpu) for device in TESTBED.devices))


BAD = {
    "'A1000-SXM-80GB'": (renamed("A1000-SXM-80GB"), SpecError, "did you mean 'A100-SXM-80GB'"),
    "not connected: no link joins 'a100-0' and '3090-a-0'": (without_outside(), SpecError, "outside ="),
    "'nvlink44'": (replace(TESTBED, nodes=(Node("host-a100", Wire(1e-6, 1e9, "nvlink44")), *TESTBED.nodes[1:])), SpecError, "did you mean 'nvlink4'"),
    "budgets of all 2 devices .* together 20,480 MiB": (replace(TESTBED, devices=TESTBED.devices[-2:]), ResourceError, "smaller model"),
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("said", BAD)
def test_refused_by_every_system(name, said) -> None:
    over, kind, hint = BAD[said]
    with pytest.raises(kind, match=said) as caught:
        SYSTEMS[name].planner(over, LLAMA, None, Options())
    assert hint in caught.value.hint and isinstance(caught.value, HetserveError)


@pytest.mark.parametrize("name", cluster_names())
def test_packaged_clusters_are_sound(name) -> None:
    if name != "gpu-emulated-plus-cpu":
        require_sound(load_cluster(name, HOST), model(2), "bfloat16")


def test_which_nodes_must_be_told_to_be_joined() -> None:
    """Workers that join over a network nobody described are left alone; one described link between nodes, and the others must be too."""
    bare = cluster({"here": ("amx", 4.0), "there": ("avx2", 4.0), "far": ("avx2", 4.0)})
    devices = (bare.devices[0], replace(bare.devices[1], node="b"), replace(bare.devices[2], node="c"))
    apart = replace(bare, devices=devices, nodes=(Node("b"), Node("c")))
    require_sound(apart, model(), "bfloat16")
    both = [Link(a, b, 1e-5, 1e9) for a, b in (("here", "there"), ("there", "here"))]
    with pytest.raises(SpecError, match="the controller's node and node 'c' of cluster 'made up' are not connected"):
        require_sound(replace(apart, links=tuple(both)), model(), "bfloat16")
    open_case(apart, model(), None, Options(profile=profile(model(), apart, {"amx": 1e-6, "avx2": 1e-5})))
    full = [Link(a, b, 1e-5, 1e9) for a in ("here", "there", "far") for b in ("here", "there", "far") if a != b]
    require_sound(replace(apart, links=tuple(full)), model(), "bfloat16")
    with pytest.raises(SpecError, match="no link joins 'there' and 'far'"):
        require_sound(replace(apart, links=tuple(full[:-1])), model(), "bfloat16")
    require_sound(replace(apart, links=tuple(full[:-1])), model(), "bfloat16", measured=True)
