"""Head-wise against sequence-wise volume: the paper's numbers (papers/hetis.md 5.3), and what `model show` says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hetserve.cost.volume import heads_bytes, sequence_bytes
from hetserve.engine.model.recipes import RECIPES
from hetserve.spec.model import ModelSpec

TINY = ModelSpec.from_hf(RECIPES["tiny"].config)


def shaped(q_heads: int, kv_heads: int) -> ModelSpec:
    return replace(TINY, q_heads=q_heads, kv_heads=kv_heads, head_dim=128, dtype="bfloat16")


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "bytes_"), [(40, 40, 40_960), (56, 56, 57_344), (64, 8, 36_864)], ids=["Llama-13B", "OPT-30B", "Llama-70B"]
)
def test_bytes_with_all_heads_elsewhere_are_the_papers(q_heads: int, kv_heads: int, bytes_: int) -> None:
    assert heads_bytes(shaped(q_heads, kv_heads)) == bytes_
    assert heads_bytes(shaped(q_heads, kv_heads), dtype="float32") == 2 * bytes_


def test_the_papers_ratios_for_llama_70b() -> None:
    model = shaped(64, 8)
    assert sequence_bytes(model, 4) / heads_bytes(model) == pytest.approx(512 / 144)  # its 3.55
    assert sequence_bytes(model, 1) / heads_bytes(model, 0.2) == pytest.approx(128 / 28.8)  # 4.44: 2.68 in time


def test_heads_on_more_devices_send_no_more() -> None:
    model = shaped(64, 8)
    assert heads_bytes(model, 0.25) * 4 == heads_bytes(model)
    assert sequence_bytes(model, 2) * 2 == sequence_bytes(model, 4)
