"""Packed products against plain ones, for every number of rows; and that packing keeps one copy of the weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hetserve import _C
from hetserve.engine.model import linear as linear_module
from hetserve.engine.model.linear import Linear, can_pack


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(96, 80), (128, 96)])
@pytest.mark.parametrize(("dtype", "packs"), [(torch.float32, False), (torch.bfloat16, True), (torch.bfloat16, False)])
def test_products_are_right(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, packs: bool, outputs: int, inputs: int, with_bias: bool, activation: str
) -> None:
    """Without packing too, as on a CPU whose oneDNN multiplies no bfloat16; and of a shape that `_C.linear` takes, and one that it does not."""
    monkeypatch.setattr("hetserve.engine.model.linear.can_pack", lambda dtype: packs and can_pack(dtype))
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    bias = torch.randn(outputs, generator=generator).to(dtype) if with_bias else None
    linear = Linear(weight, bias, activation)
    assert (linear.out_features, linear.in_features) == (outputs, inputs)
    for rows in (1, 2, 7, 64, 300):
        x = torch.randn(rows, inputs, generator=generator).to(dtype)
        expected = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
        expected = {"none": lambda y: y, "relu": torch.relu, "gelu": functional.gelu}[activation](expected)
        with torch.inference_mode():
            found = linear(x)
        assert found.dtype == dtype and found.shape == (rows, outputs)
        tolerance = 1e-4 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN multiplies no bfloat16 on this CPU")
def test_the_unpacked_weight_is_let_go() -> None:
    weight = torch.randn(64, 64).bfloat16()
    linear = Linear(weight)
    before = linear(torch.ones(1, 64).bfloat16())
    weight.zero_()
    assert linear(torch.ones(1, 64).bfloat16()).equal(before)


@pytest.mark.skipif(not _C.info()["linear_rows"] or not can_pack(torch.bfloat16), reason="products of few rows are oneDNN's on this CPU")
def test_few_rows_go_to_our_kernel_and_more_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(640, 1056).bfloat16()
    linear, called, real = Linear(weight), [], _C.linear
    if linear_module._blocks(torch.ops.mkldnn._reorder_linear_weight(weight, None), weight) is None:
        pytest.skip("this oneDNN keeps the weight in another order")
    monkeypatch.setattr(_C, "linear", lambda x, *rest: (called.append(len(x)), real(x, *rest)))
    most = _C.info()["linear_rows"]
    for rows in (1, most, most + 1, 300):
        x = torch.randn(rows, 1056).bfloat16()
        torch.testing.assert_close(linear(x).float(), (x.double() @ weight.double().T).float(), rtol=0.02, atol=0.2)
    assert called == [1, most]


def test_an_order_that_is_not_the_expected_one_is_left_to_onednn() -> None:
    if not can_pack(torch.bfloat16):
        pytest.skip("oneDNN multiplies no bfloat16 on this CPU")
    weight, other = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    assert linear_module._blocks(torch.ops.mkldnn._reorder_linear_weight(weight, None), other) is None
    assert linear_module._blocks(torch.ops.mkldnn._reorder_linear_weight(weight[:, :40].contiguous(), None), weight[:, :40]) is None
