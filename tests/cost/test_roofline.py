"""The cost model's counts against counts made another way; its rates are checked by profiles, not here."""

from __future__ import annotations

import pytest

from hetserve.cost.rates import Rates, device_rates
from hetserve.cost.roofline import Roofline, token_pages
from hetserve.spec.cluster import Device
from hetserve.spec.model import ModelSpec

RATES = Rates(dense_flops=1e9, read_bytes=1e6, step_s=0.5, source="made up")


def model(**changes) -> ModelSpec:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "vocab_size": 100,
        "dtype": "bfloat16",
    }
    return ModelSpec.from_hf(config | changes, None, "small")


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_is_counted_from_the_shape(tied) -> None:
    """Llama's matrices by hand: q and o are hidden x hidden, k and v half of that, three of hidden x intermediate, norms beside."""
    cost = Roofline(model(tie_word_embeddings=tied), "bfloat16", RATES).step_cost()
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 80 + 2 * 32
    dense, head = 3 * layer + 32, 100 * 32
    assert cost.token_s == pytest.approx(2 * dense / 1e9)
    assert cost.head.row_s == pytest.approx(2 * head / 1e9)
    assert cost.layers.at(1) + cost.head.at(1) == pytest.approx((dense + head) * 2 / 1e6)
    assert cost.context_s == 3 * 2 * 16 * 2 / 1e6
    assert cost.pair_s == 4 * 3 * 32 / 1e9
    assert cost.source == "made up"


def test_small_steps_wait_for_weights_and_large_ones_for_arithmetic() -> None:
    cost = Roofline(model(), "bfloat16", RATES).step_cost()
    assert cost.step_s(1, 1, 0, 0) == cost.step_s(2, 2, 0, 0) == 0.5 + cost.layers.at(1) + cost.head.at(1)
    assert cost.step_s(10**6, 0, 0, 0) == pytest.approx(0.5 + 10**6 * cost.token_s)
    assert cost.step_s(1, 1, 1000, 0) - cost.step_s(1, 1, 0, 0) == pytest.approx(1000 * cost.context_s)


def test_bytes() -> None:
    cost = Roofline(model(), "float32", RATES)
    assert cost.kv_bytes(10) == 10 * 3 * 2 * 16 * 4
    assert cost.weight_bytes() == model().parameters * 4
    assert cost.workspace_bytes(2048, 256) > cost.workspace_bytes(1024, 256) > cost.workspace_bytes(1024, 1) > 0
    assert [token_pages(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_a_capped_device_is_slower_at_bf16_and_reads_as_fast() -> None:
    fast, slow = (device_rates(Device("d", "cpu", (0, 1), isa, 1), "bfloat16") for isa in ("amx", "avx2"))
    assert fast.dense_flops > 10 * slow.dense_flops and fast.read_bytes == slow.read_bytes
    assert "2 cores, amx" in fast.source
    assert device_rates(Device("d", "cpu", (0,), "", 1), "float32").dense_flops > 0
