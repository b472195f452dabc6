"""Packed products against plain ones, for every number of rows; and that packing keeps one copy of the weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hetserve.engine.model.linear import Linear, can_pack


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("dtype", "packs"), [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)])
def test_products_are_right(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, packs: bool, with_bias: bool, activation: str) -> None:
    """Without packing too, as on a CPU whose oneDNN multiplies no bfloat16."""
    monkeypatch.setattr("hetserve.engine.model.linear.can_pack", lambda dtype: packs and can_pack(dtype))
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(96, 80, generator=generator).to(dtype), torch.randn(96, generator=generator).to(dtype) if with_bias else None
    linear = Linear(weight, bias, activation)
    assert (linear.out_features, linear.in_features) == (96, 80)
    for rows in (1, 2, 7, 64, 300):
        x = torch.randn(rows, 80, generator=generator).to(dtype)
        expected = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        expected = {"none": lambda y: y, "relu": torch.relu, "gelu": functional.gelu}[activation](expected)
        with torch.inference_mode():
            found = linear(x)
        assert found.dtype == dtype and found.shape == (rows, 96)
        tolerance = 1e-4 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN multiplies no bfloat16 on this CPU")
def test_the_unpacked_weight_is_let_go() -> None:
    weight = torch.randn(64, 64).bfloat16()
    linear = Linear(weight)
    before = linear(torch.ones(1, 64).bfloat16())
    weight.zero_()
    assert linear(torch.ones(1, 64).bfloat16()).equal(before)
