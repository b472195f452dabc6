"""Costs of clusters whose GPUs the catalog knows: what `hetserve cost step` says of them, over the links that really join their ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetserve.catalog import rows
from hetserve.cost.costs import Costs
from hetserve.cost.gpu import GpuCosts
from hetserve.cost.rates import device_rates
from hetserve.errors import SpecError
from hetserve.spec.cluster import CUDA, Cluster, Device, Host, Link, Node
from hetserve.spec.links import Wire
from hetserve.spec.load import load_cluster

HOST = Host((0, 1), 2**33, "avx2")
TESTBED = load_cluster("hetis-testbed", HOST)


def host(gpu: str, count: int, inside: Wire | None, links: tuple[Link, ...] = ()) -> Cluster:
    devices = tuple(Device(f"gpu-{number}", CUDA, (0,), "", 70 * 2**30, None, "host", number, gpu) for number in range(count))
    return Cluster("made up", (0,), devices, (Node("host", inside),), links)


def costs(over: Cluster, model: str, dtype: str = "bfloat16") -> Costs:
    return Costs(rows.model(model), dtype, over)


def decode_s(of: Costs, device: str, ranks: int, sequences: int, context: int, layers: tuple[int, int] | None = None) -> float:
    """A step as executors count it: the StepCost's dense work, and attention by the rank's own HeadCost."""
    layers = layers or (0, of.model.layers)
    step, heads = of.stage_cost(device, layers, "bfloat16", ranks), of.head_cost(device, layers, ranks=ranks)
    groups = sequences * of.model.kv_heads // ranks
    whole_s = step.step_s(sequences, sequences, 0, 0.0) + heads.head_s * groups + heads.token_s * groups * context + heads.fixed_s
    assert whole_s == pytest.approx(step.step_s(sequences, sequences, sequences * context, 0.0, sequences))
    return whole_s


@pytest.mark.parametrize(
    ("cluster", "device", "model", "ranks", "catalog", "link"),
    [
        ("hetis-testbed", "a100-0", "Llama-2-13B", 1, "A100", ""),
        ("hetis-testbed", "a100-0", "Llama-2-70B", 4, "A100", "pcie4"),
        ("hetis-testbed", "3090-a-1", "Llama-2-13B", 2, "RTX-3090-24GB", "pcie3"),
        ("hetis-testbed", "p100-3", "OPT-13B", 4, "P100-12GB", "pcie3"),
        ("hexgen2-het1", "a100-5", "Llama-2-70B", 4, "A100", ""),
        ("hexgen2-het1", "l40-0", "Llama-2-70B", 4, "L40-48GB", ""),
        ("hexgen2-het1", "a6000-b-0", "Llama-2-70B", 2, "A6000", ""),
        ("h100x8", "h100-0", "Llama-2-70B", 8, "H100", "nvlink4"),
    ],
)
def test_steps_are_those_of_the_catalog(cluster, device, model, ranks, catalog, link) -> None:
    of, told = costs(load_cluster(cluster, HOST), model), GpuCosts(catalog, rows.model(model), ranks, link)
    for sequences, context in ((8, 512), (32, 1024), (100, 700)):
        assert decode_s(of, device, ranks, sequences, context) == pytest.approx(told.decode(sequences, context).seconds, rel=0.02)
    step = of.stage_cost(device, (0, of.model.layers), "bfloat16", ranks)
    for prompt in (256, 1024, 4096):
        assert step.step_s(prompt, 1, 0, prompt**2 / 2) == pytest.approx(told.prefill(1, prompt).seconds, rel=0.03)
    assert told.known.device in step.source and (ranks == 1) == ("joined by" not in step.source)


def test_the_links_that_join_ranks_decide() -> None:
    """An A100 of SXM has NVLink, but this host joins its A100s by PCI Express."""
    slow, fast = (costs(over, "Llama-2-70B") for over in (TESTBED, load_cluster("hexgen2-het1", HOST)))
    sources = [of.stage_cost("a100-0", (0, 80), "bfloat16", 4).source for of in (slow, fast)]
    assert "joined by pcie4" in sources[0] and "joined by nvlink3" in sources[1]
    assert decode_s(slow, "a100-0", 4, 32, 1024) > 1.1 * decode_s(fast, "a100-0", 4, 32, 1024)


def test_a_link_whose_kind_nobody_said() -> None:
    """It is the GPU's own if it carries as much, else a ring at what is declared; nothing declared: the GPU's own."""
    near, far, silent = Wire(5e-6, 270e9), Wire(1e-3, 1e9), None
    own, slow, undeclared = (costs(host("A100", 4, inside), "Llama-2-13B") for inside in (near, far, silent))
    assert own.stage_cost("gpu-0", (0, 40), "bfloat16", 2) == undeclared.stage_cost("gpu-0", (0, 40), "bfloat16", 2)
    ring = slow.stage_cost("gpu-0", (0, 40), "bfloat16", 4)
    assert "a ring over a link as declared" in ring.source and "nccl" not in ring.source and "pcie" not in ring.source
    reduce_s = 2 * 40 * 2 * 3 * (1e-3 + 64 * 5120 * 2 / (4 * 1e9))
    alone = own.stage_cost("gpu-0", (0, 40), "bfloat16", 4).layers.at(64)
    assert ring.layers.at(64) == pytest.approx(reduce_s + alone, rel=0.03)


def test_ranks_are_those_that_are_reached_fastest() -> None:
    pairs = [Link(f"gpu-{a}", f"gpu-{b}", 5e-6, 300e9, kind="nvlink-bridge-600") for a, b in ((0, 1), (1, 0), (2, 3), (3, 2))]
    of = costs(host("A100-PCIe-80GB", 4, Wire(1e-5, 25e9, "pcie4"), tuple(pairs)), "Llama-2-13B")
    assert "joined by nvlink-bridge-600" in of.stage_cost("gpu-2", (0, 40), "bfloat16", 2).source
    assert "joined by pcie4" in of.stage_cost("gpu-2", (0, 40), "bfloat16", 4).source


def test_stages_add_up_and_the_engines_own_time_is_there_once() -> None:
    of = costs(load_cluster("h100x8", HOST), "Llama-2-70B")
    whole_s = decode_s(of, "h100-0", 2, 32, 1024)
    parts_s = [decode_s(of, "h100-0", 2, 32, 1024, layers) for layers in ((0, 13), (13, 55), (55, 80))]
    assert sum(parts_s) == pytest.approx(whole_s)
    first, last = (of.stage_cost("h100-0", layers, "bfloat16") for layers in ((0, 40), (40, 80)))
    assert first.fixed_s == 0 < last.fixed_s and first.head.at(8) == 0 < last.head.at(8)


def test_attention_workers_are_as_their_chip_and_link_say() -> None:
    of = costs(TESTBED, "Llama-2-13B")
    local, remote = of.head_cost("p100-0", (0, 40)), of.head_cost("p100-0", (0, 40), "a100-0", ranks=4)
    vector_s = 128 * 2 / 12.5e9
    assert remote.fixed_s - local.fixed_s == pytest.approx(40 * 2 * 30e-6, rel=0.02) and remote.head_s - local.head_s > 0.9 * 40 * 4 * vector_s
    assert local.token_s == pytest.approx(40 * 2 * 128 * 2 / 549e9, rel=0.25)
    assert "P100" in remote.source and "declared" in remote.source
    fast = of.head_cost("a100-0", (0, 40))
    assert local.token_s > 2 * fast.token_s


def test_kinds_of_unknown_gpus_are_told_by_rates_and_so_is_float32() -> None:
    plain = host("", 2, Wire(1e-5, 25e9))
    one, two = (costs(plain, "Llama-2-7B").stage_cost("gpu-0", (0, 32), "bfloat16", ranks) for ranks in (1, 2))
    assert one.source == device_rates(plain.devices[0], "bfloat16").source and "shared by 2" in two.source
    link_s = 4 * (1e-5 + 128 * 4096 * 2 / (2 * 25e9))
    assert two.layers.at(128) == pytest.approx(one.layers.at(128) / 2 + 32 * link_s)
    assert (two.fixed_s, two.head.at(9), two.pair_s, two.context_s) == pytest.approx(
        (one.fixed_s, one.head.at(9) / 2, one.pair_s / 2, one.context_s / 2)
    )
    exact = costs(host("A100", 1, None), "Llama-2-7B", "float32")
    assert "roofline" in exact.stage_cost("gpu-0", (0, 32), "float32").source and "roofline" in exact.head_cost("gpu-0", (0, 32)).source


def test_what_ranks_hold() -> None:
    of = costs(TESTBED, "Llama-2-70B")
    whole, quarter = (of.weight_bytes("a100-0", (0, 80), "bfloat16", ranks) for ranks in (1, 4))
    norms = 2 * (2 * 80 + 1) * 8192
    rope = of.model.max_positions * 128 * 4
    assert quarter == pytest.approx((whole - norms - rope) / 4 + norms + rope)
    works = [of.workspace_bytes("a100-0", (0, 80), "bfloat16", 1024, 256, 4096, ranks) for ranks in (1, 2, 4, 8)]
    assert sorted(works, reverse=True) == works and works[3] > 3 * 256 * 32000 * 4 + 2 * 1024 * 6 * 8192 * 2
    few = Costs(replace(rows.model("Llama-2-70B"), kv_heads=2), "bfloat16", TESTBED)
    one, four = (few.weight_bytes("a100-0", (1, 2), "bfloat16", ranks) for ranks in (2, 4))
    kept_twice = 2 * 2 * 128 * 8192  # k and v of one head, on every rank
    assert four - kept_twice == pytest.approx((one - kept_twice) / 2, rel=0.01)


def test_what_cannot_be_ranks() -> None:
    of = costs(TESTBED, "Llama-2-13B")
    with pytest.raises(SpecError, match="4 tensor-parallel devices like '3090-a-0' are needed on one node, but cluster 'hetis-testbed' has 2"):
        of.stage_cost("3090-a-0", (0, 40), "bfloat16", 4)
    with pytest.raises(SpecError, match="cannot be cut into 3"):
        of.stage_cost("a100-0", (0, 40), "bfloat16", 3)
    with pytest.raises(SpecError, match="no device called 'A1O0'"):
        costs(host("A1O0", 1, None), "Llama-2-13B").stage_cost("gpu-0", (0, 40), "bfloat16")
    with pytest.raises(SpecError, match="no link called 'nvlink33'"):
        costs(host("A100", 2, Wire(1e-6, 3e11, "nvlink33")), "Llama-2-13B").stage_cost("gpu-0", (0, 40), "bfloat16", 2)
