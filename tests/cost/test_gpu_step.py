"""Steps are counted exactly from shapes, and what a GPU of the catalog is said to take adds up and says its grounds."""

from __future__ import annotations

import numpy as np
import pytest

from hetserve.catalog import rows
from hetserve.cost.fits import START
from hetserve.cost.gpu import GpuCosts
from hetserve.cost.kernels import AllReduce, Chip, Decode, Gemm, Link, Overhead, Prefill, Small
from hetserve.cost.step import PARTS, Kernels, Rank, Wire, Work, all_reduce_s, decoding, prompts, step_parts_s
from hetserve.errors import SpecError

KERNELS = Kernels(
    START[Gemm],
    START[Decode],
    START[Prefill],
    START[Small],
    AllReduce(5e-6, 1e-7, 0.7, 2.0),
    AllReduce(2e-5, 1e-6, 0.8, 2.0),
    AllReduce(6e-5, 1e-6, 0.6, 2.0),
    START[Link],
    START[Overhead],
)
CHIP = Chip(300e12, 2e12, 100)
NVLINK, PCIE = Wire(300e9, True), Wire(30e9, False)


@pytest.mark.parametrize("name", [row.name for row in rows.models() if not row.name.startswith("OPT")])
def test_the_weights_of_all_parts_are_the_model(name: str) -> None:
    """Products, the output matrix, the embedding, two norms a layer and the last one: every parameter but biases."""
    model = rows.model(name)
    rank = Rank(model)
    layer = sum(product.n * product.k for product in rank.products.values())
    biases = model.layers * (model.q_dim + 2 * model.kv_dim) if model.qkv_bias else 0
    embedding = model.vocab * model.hidden
    assert model.layers * (layer + 2 * model.hidden) + rank.head.n * rank.head.k + embedding + model.hidden + biases == model.parameters


def test_tied_embeddings_are_multiplied_all_the_same() -> None:
    model = rows.model("OPT-13B")
    assert model.tie_embeddings and tuple(Rank(model).head) == (model.vocab, model.hidden)
    assert Rank(model).products["up"] == (model.intermediate, model.hidden)  # no gate


def test_ranks_share_a_layer() -> None:
    whole, part = Rank(rows.model("Llama-2-70B")), Rank(rows.model("Llama-2-70B"), 4)
    for name in whole.products:
        assert whole.products[name].n * whole.products[name].k == 4 * part.products[name].n * part.products[name].k
    assert (part.q_heads, part.kv_heads) == (16, 2)
    assert Rank(rows.model("Llama-2-70B"), 16).kv_heads == 1  # kept twice
    with pytest.raises(SpecError, match="7 tensor-parallel parts"):
        Rank(rows.model("Llama-2-70B"), 7)


def test_parts_of_steps() -> None:
    rank = Rank(rows.model("Llama-2-7B"))
    decode = step_parts_s(KERNELS, CHIP, NVLINK, rank, decoding(8, 1024), 32)
    prefill = step_parts_s(KERNELS, CHIP, NVLINK, rank, prompts(1, 1024), 32)
    assert set(decode) == set(PARTS) == set(prefill)
    assert decode["prefill"] == 0 and prefill["decode"] == 0 and decode["allreduce"] == 0
    both = Work(decoding=8, context=8192, longest=1024, rows=1024, pairs=1024 * 512.5, reach=1024, samples=9)
    mixed = step_parts_s(KERNELS, CHIP, NVLINK, rank, both, 32)
    assert float(mixed["decode"]) == pytest.approx(float(decode["decode"]), rel=1e-6)
    assert float(mixed["prefill"]) == pytest.approx(float(prefill["prefill"]), rel=1e-6)
    assert float(prefill["up"]) <= float(mixed["up"]) < 1.2 * float(prefill["up"])
    learned = step_parts_s(KERNELS, CHIP, NVLINK, Rank(rows.model("OPT-13B")), decoding(1, 1), 40)
    assert learned["rope"] == 0  # learned positions


def test_many_steps_at_once_are_those_one_by_one() -> None:
    rank = Rank(rows.model("Llama-3-8B"), 2)
    together = step_parts_s(KERNELS, CHIP, PCIE, rank, decoding(np.array([1.0, 64.0]), np.array([100.0, 2000.0])), 32)
    for index, (count, context) in enumerate(((1, 100), (64, 2000))):
        alone = step_parts_s(KERNELS, CHIP, PCIE, rank, decoding(count, context), 32)
        for part in PARTS:
            assert float(np.broadcast_to(together[part], 2)[index]) == pytest.approx(float(alone[part])), part


def test_which_all_reduce() -> None:
    assert all_reduce_s(KERNELS, NVLINK, 1, 1e9) == 0
    small, large = (float(all_reduce_s(KERNELS, NVLINK, 4, size)) for size in (1e5, 1e8))
    assert small == pytest.approx(float(KERNELS.custom.seconds(300e9, 4, 1e5)))
    assert large == pytest.approx(float(KERNELS.nccl.seconds(300e9, 4, 1e8)))
    assert float(all_reduce_s(KERNELS, PCIE, 4, 1e5)) == pytest.approx(float(KERNELS.pcie.seconds(30e9, 4, 1e5)))


# ----------------------------------------------------------------------------------------------------- GPUs of the catalog


@pytest.mark.parametrize("device", [row.name for row in rows.devices()])
def test_every_device_answers_and_says_its_grounds(device: str) -> None:
    costs = GpuCosts(device, rows.model("Llama-2-7B"))
    told = costs.decode(16, 1024)
    assert told.seconds == pytest.approx(sum(told.parts.values())) and told.source
    weights_s = 2 * 6.6e9 / rows.device(device).read_bytes
    assert weights_s < told.seconds < 12 * weights_s
    assert costs.prefill(1, 2048).seconds > 2 * 6.5e9 * 2048 / (1.1 * rows.device(device).tensor_flops)


def test_stages_add_up_to_the_model() -> None:
    costs = GpuCosts("A100", rows.model("Llama-2-70B"), 4)
    work = decoding(32, 1024)
    whole = costs.step(work).seconds
    parts = [costs.step(work, 30, last=False), costs.step(work, 50, last=True)]
    assert sum(part.seconds for part in parts) == pytest.approx(whole)
    assert "head" not in parts[0].parts and "overhead" not in parts[0].parts


def test_better_devices_are_faster() -> None:
    model = rows.model("Llama-2-13B")
    decode = {name: GpuCosts(name, model).decode(32, 1024).seconds for name in ("H200", "H100", "A100", "A6000", "P100-12GB")}
    assert list(decode) == sorted(decode, key=decode.__getitem__)
    assert GpuCosts("A100", model, 2).decode(32, 1024).seconds < decode["A100"]


def test_an_answer_names_only_the_grounds_it_used() -> None:
    alone, shared = (GpuCosts("L40S", rows.model("Llama-3-8B"), tp).decode(1, 100).source for tp in (1, 2))
    assert "pcie" not in alone and "nccl" not in shared and "pcie" in shared and "overhead: fit across devices" in alone


def test_transfers() -> None:
    costs = GpuCosts("A100", rows.model("Llama-2-70B"))
    kv = costs.kv_transfer(1000, "ethernet-100g")
    wire_s = 1000 * 327_680 / 12.5e9
    assert wire_s < kv.seconds < 1.5 * wire_s and "ethernet-100g" in kv.source
    assert costs.kv_transfer(1000, "ethernet-100g", layers=40).seconds == pytest.approx(kv.seconds / 2, rel=0.01)
    assert costs.hop(1).seconds < 1e-4 < costs.hop(100_000).seconds


def test_curves_and_lines_tell_what_steps_tell() -> None:
    costs = GpuCosts("H100", rows.model("Llama-3-8B"))
    curve, told = costs.dense_curve(32), costs.decode(100, 1024)
    dense_s = sum(told.parts[name] for name in ("qkv", "out", "up", "down", "norm", "rope", "store", "act"))
    assert curve.at(100) == pytest.approx(dense_s, rel=0.05)
    assert costs.head_curve.at(100) == pytest.approx(told.parts["head"], rel=0.05)
    line, groups = costs.attention_line, 100 * 8
    assert 32 * (groups * (line.head_s + line.token_s * 1024) + line.fixed_s) == pytest.approx(told.parts["decode"], rel=0.02)
    prompt = costs.prompt_line
    seconds = 32 * (prompt.fixed_s + 8192 * prompt.row_s + prompt.pair_s * 8192**2 / 2)
    assert seconds == pytest.approx(costs.prefill(1, 8192).parts["prefill"], rel=0.1)


def test_what_cannot_be_answered() -> None:
    with pytest.raises(SpecError, match="A1O0"):
        _ = GpuCosts("A1O0", rows.model("Llama-2-7B")).source
    with pytest.raises(SpecError, match="3 tensor-parallel parts"):
        GpuCosts("A100", rows.model("Llama-2-7B"), 3).decode(1, 1)
