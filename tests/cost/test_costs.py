"""Costs of a cluster: the paper's lines from a profile, declared links, memory; every answer says on what grounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hetserve.cost.costs import Costs
from hetserve.engine.model.decoder import stage_bytes
from hetserve.errors import SpecError
from hetserve.spec.cluster import Cluster, Device, Link, Stretch
from hetserve.spec.fingerprint import model_fingerprint
from hetserve.spec.model import ModelSpec
from hetserve.spec.profile import AttentionLine, Contention, DensePoint, DenseTimes, DeviceProfile, LinkProfile, Profile, Slowed

MODEL = ModelSpec.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 320,
        "dtype": "bfloat16",
    },
    None,
    "small",
)
CLUSTER = Cluster("pair", (0,), (Device("fast", "cpu", (0,), "amx", 2**30), Device("slow", "cpu", (1,), "avx2", 2**29)))


def points(floor_s: float, row_s: float) -> tuple[DensePoint, ...]:
    return tuple(DensePoint(rows, max(floor_s, row_s * rows)) for rows in (1, 4, 16, 64, 256, 1024))


def measured(name: str, isa: str, slower: float) -> DeviceProfile:
    dense = tuple(DenseTimes(weights, points(1e-3, slower * 1e-5), points(2e-3, slower * 3e-5)) for weights in ("bfloat16", "float32"))
    return DeviceProfile(name, "cpu", isa, 1, 1e10, AttentionLine(1e-6, 2e-8, 1e-5, 0.02), 5e-9, dense, isa)


PROFILE = Profile(
    model="small",
    model_fingerprint=model_fingerprint(MODEL),
    dtype="bfloat16",
    machine="a machine",
    clocks_mhz=2000.0,
    versions="",
    date="2026-01-01",
    devices=(measured("fast", "amx", 1), measured("slow", "avx2", 70)),
    links=(LinkProfile("fast", "slow", 3e-9, 4e-5, 1e9, 0.05), LinkProfile("slow", "fast", 5e-9, 6e-5, 2e9, 0.05)),
)
COSTS = Costs(MODEL, "bfloat16", CLUSTER, PROFILE)


def test_a_measured_stage() -> None:
    step = COSTS.stage_cost("slow", (1, 4), "float32")
    least = COSTS.stage_cost("fast", (1, 4), "float32")
    assert least.layers.at(1) == pytest.approx(3 * 1e-3) and least.head.at(1) == pytest.approx(2e-3)
    assert step.token_s == pytest.approx(3 * 70e-5)
    assert step.head.row_s == pytest.approx(70 * 3e-5) and step.pair_s == pytest.approx(3 * 5e-9)
    assert step.step_s(8, 8, 10, 0.0) - step.step_s(8, 8, 0, 0.0) == pytest.approx(step.attend_s + 10 * step.context_s)
    assert step.attend_s == pytest.approx(3 * 1e-5)
    assert COSTS.stage_cost("slow", (0, 1), "float32").head.at(64) == 0
    assert "2026-01-01" in step.source and "float32" in step.source


def test_the_papers_lines_by_head_groups() -> None:
    """tau = a h + b g + c with h = r query heads a group, g = 2 vectors a token; rho adds 2r + 2 vectors and beta both ways. Here r = 4."""
    local, remote = COSTS.head_cost("slow", (0, 4)), COSTS.head_cost("slow", (0, 4), "fast")
    assert (local.head_s, local.token_s, local.fixed_s) == pytest.approx((4 * 4 * 1e-6, 4 * 2 * 2e-8, 4 * 1e-5))
    assert remote.head_s - local.head_s == pytest.approx(4 * (6 * 3e-9 + 4 * 5e-9))
    assert remote.fixed_s - local.fixed_s == pytest.approx(4 * 10e-5) and remote.token_s == local.token_s
    assert COSTS.head_cost("slow", (0, 1)).token_s * 4 == pytest.approx(local.token_s)


def test_pools_of_a_stage_slow_each_other_as_measured() -> None:
    """1 + sum(factor - 1) over the others, on head_s and token_s alone, and told by `shared`, not in them."""
    names = ("fast", "slow", "third")
    pairs = tuple(Contention(a, b, Slowed(1.4 if b == "fast" else 1.25, 9.0, 9.0)) for a in names for b in names if a != b)
    costs = replace(COSTS, profile=replace(PROFILE, contention=pairs))
    assert costs.head_cost("slow", (0, 4), "fast", ["fast"]).shared == pytest.approx(1.4)
    both = costs.head_cost("slow", (0, 4), "fast", ["fast", "third"])
    assert both == replace(COSTS.head_cost("slow", (0, 4), "fast"), shared=both.shared) and both.shared == pytest.approx(1.65)
    assert costs.head_cost("slow", (0, 4), "fast").shared == 1
    for unknown in (COSTS, Costs(MODEL, "bfloat16", CLUSTER)):
        assert unknown.head_cost("slow", (0, 4), "fast", ["fast"]).shared == 1
        assert set(unknown.contention("slow", "fast").factors.values()) == {1.0}


def test_without_a_profile_links_are_as_declared_and_emulated_ones_never_better() -> None:
    links = (Link("fast", "slow", 0.01, 1e6), Link("slow", "fast", 0.01, 1e6, emulate=True))
    declared = replace(CLUSTER, links=links)
    bare = Costs(MODEL, "bfloat16", declared)
    assert bare.head_cost("slow", (0, 4), "fast").fixed_s == pytest.approx(4 * 0.02)
    assert bare.move_s("fast", "slow", 10**6) == pytest.approx(1.01) and bare.move_s("fast", "fast", 10**6) == 0
    known = Costs(MODEL, "bfloat16", declared, PROFILE)
    assert known.link_cost("fast", "slow").beta_s == 4e-5 and known.link_cost("slow", "fast").beta_s == 0.01
    assert "emulated" in known.link_cost("slow", "fast").source
    assert Costs(MODEL, "bfloat16", CLUSTER).head_cost("slow", (0, 4), "fast").fixed_s > 0


def test_stages_add_up_to_the_whole() -> None:
    bare = Costs(MODEL, "bfloat16", CLUSTER)
    for costs in (bare, COSTS):
        whole, first, second = (costs.stage_cost("fast", layers, "bfloat16") for layers in ((0, 4), (0, 1), (1, 4)))
        for name in ("fixed_s", "token_s", "attend_s", "context_s", "pair_s"):
            assert getattr(first, name) + getattr(second, name) == pytest.approx(getattr(whole, name)), name
        for rows in (1, 7, 64, 5000):
            assert first.step_s(rows, rows, rows, 0) + second.step_s(rows, rows, rows, 0) == pytest.approx(whole.step_s(rows, rows, rows, 0))


def test_memory_is_weights_as_stored_and_workspace() -> None:
    whole = COSTS.weight_bytes("fast", (0, 4), "bfloat16")
    rope = MODEL.max_positions * 8 * 4
    assert whole == MODEL.parameters * 2 + rope and COSTS.weight_bytes("fast", (0, 4), "float32") == MODEL.parameters * 4 + rope
    assert COSTS.weight_bytes("fast", (0, 1), "bfloat16") + COSTS.weight_bytes("fast", (1, 4), "bfloat16") == whole + rope
    logits = COSTS.workspace_bytes("fast", (0, 4), "bfloat16", 64, 8) - COSTS.workspace_bytes("fast", (0, 2), "bfloat16", 64, 8)
    assert logits == 3 * 8 * 320 * 4


@pytest.mark.parametrize(("kind", "device", "seconds"), [("cpu", "cpu", 1), ("cuda-emulated", "cpu", 1), ("cuda", "cuda", 0)])
def test_a_tied_output_matrix_is_stored_a_second_time_in_a_cpus_memory(kind, device, seconds) -> None:
    """As the engine says of itself."""
    over = Cluster("one", (0,), (Device("it", kind, (0,), "", 2**34),))
    tied, apart = (Costs(replace(MODEL, tie_embeddings=tie), "bfloat16", over).weight_bytes("it", (0, 4), "bfloat16") for tie in (True, False))
    assert apart - tied == (1 - seconds) * 2 * MODEL.vocab * MODEL.embed_dim
    assert tied == stage_bytes(replace(MODEL, tie_embeddings=True), "bfloat16", (0, 4), MODEL.max_positions, torch.device(device))


def test_what_a_profile_does_not_know_is_said() -> None:
    other = replace(CLUSTER, devices=(*CLUSTER.devices, Device("third", "cpu", (2,), "", 2**30)))
    with pytest.raises(SpecError, match="third"):
        Costs(MODEL, "bfloat16", other, PROFILE).stage_cost("third", (0, 4), "bfloat16")
    with pytest.raises(SpecError, match="link"):
        Costs(MODEL, "bfloat16", other, PROFILE).link_cost("fast", "third")
    with pytest.raises(SpecError, match="float16"):
        COSTS.stage_cost("fast", (0, 4), "float16")


def test_a_stretched_device_is_slower_by_so_much() -> None:
    devices = (replace(CLUSTER.devices[0], stretch=Stretch(3.0, 2.0)), CLUSTER.devices[1])
    plain, stretched = Costs(MODEL, "bfloat16", CLUSTER), Costs(MODEL, "bfloat16", replace(CLUSTER, devices=devices))
    assert stretched.stage_cost("fast", (0, 4), "bfloat16").token_s == pytest.approx(3 * plain.stage_cost("fast", (0, 4), "bfloat16").token_s)
    assert stretched.head_cost("fast", (0, 4)).token_s == pytest.approx(2 * plain.head_cost("fast", (0, 4)).token_s)
