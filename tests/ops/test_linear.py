"""Products of few rows against exact ones, for every number of rows that a group of sums can be left with; strided views; threads."""

from __future__ import annotations

import math

import pytest
import torch

from hetserve import _C

ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 29, 64, 65, 131]


@pytest.fixture(autouse=True)
def not_on_a_gpu(request: pytest.FixtureRequest) -> None:
    if "isa" in request.fixturenames and request.getfixturevalue("isa") == "cuda":
        pytest.skip("linear is for the CPU")


def blocked(weight: torch.Tensor) -> torch.Tensor:
    outputs, inputs = weight.shape
    return weight.view(outputs // 64, 64, inputs // 32, 16, 2).permute(0, 2, 3, 1, 4).contiguous()


def strided(x: torch.Tensor, margin: int = 32) -> torch.Tensor:
    """x as a view with NaN around every row."""
    whole = torch.full((x.shape[0], x.shape[1] + 2 * margin), math.nan, dtype=x.dtype)
    whole[:, margin:-margin] = x
    return whole[:, margin:-margin]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 32), (192, 96), (128, 1024), (64, 544)])
def test_products(isa: str, outputs: int, inputs: int, with_bias: bool, relu: bool) -> None:
    weight, bias = torch.randn(outputs, inputs).bfloat16(), torch.randn(outputs).bfloat16() if with_bias else None
    blocks = blocked(weight)
    for rows in ROWS:
        x = strided(torch.randn(rows, inputs).bfloat16())
        out = strided(torch.full((rows, outputs), math.nan, dtype=torch.bfloat16))
        _C.linear(x, blocks, bias, relu, out)
        exact, terms = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
        if bias is not None:
            exact, terms = exact + bias.double(), terms + bias.double().abs()
        exact = exact.clamp(min=0) if relu else exact
        allowed = 2**-8 * exact.abs() + inputs * 2**-24 * terms  # one rounding to bfloat16, and float32's worst over the sum
        assert ((out.double() - exact).abs() <= allowed).all()
        assert out._base[:, :32].isnan().all() and out._base[:, -32:].isnan().all()


def test_a_row_is_the_same_among_any_number_of_rows(isa: str) -> None:
    x, blocks = torch.randn(64, 1056).bfloat16(), blocked(torch.randn(128, 1056).bfloat16())
    together = torch.empty(64, 128, dtype=torch.bfloat16)
    _C.linear(x, blocks, None, False, together)
    for rows in ROWS[:-2]:
        alone = torch.empty(rows, 128, dtype=torch.bfloat16)
        _C.linear(x[:rows], blocks, None, False, alone)
        assert torch.equal(alone, together[:rows])


def test_threads_share_the_columns() -> None:
    x, blocks = torch.randn(9, 1024).bfloat16(), blocked(torch.randn(1024, 1024).bfloat16())
    found = [torch.empty(9, 1024, dtype=torch.bfloat16) for _ in range(2)]
    before = _C.get_threads()
    try:
        for threads, out in zip((1, 3), found, strict=True):
            _C.set_threads(threads)
            _C.linear(x, blocks, None, False, out)
    finally:
        _C.set_threads(before)
    assert torch.equal(*found)


def test_no_rows(isa: str) -> None:
    _C.linear(torch.empty(0, 32).bfloat16(), blocked(torch.randn(64, 32).bfloat16()), None, False, torch.empty(0, 64).bfloat16())


def test_what_does_not_fit_is_refused() -> None:
    x, blocks, out = torch.randn(2, 32).bfloat16(), blocked(torch.randn(64, 32).bfloat16()), torch.empty(2, 64).bfloat16()
    wrong = [
        ((x.float(), blocks, None, False, out), "expected bfloat16"),
        ((x, blocks.float(), None, False, out), "weight: expected contiguous bfloat16"),
        ((x, blocks.transpose(2, 3), None, False, out), "weight: expected contiguous bfloat16"),
        ((x[:, :16], blocks, None, False, out), "turns 32 columns into 64"),
        ((x, blocks, None, False, torch.empty(3, 64).bfloat16()), "turns 32 columns into 64"),
        ((x, blocks, torch.zeros(32).bfloat16(), False, out), "bias"),
        ((x, blocks, None, False, torch.empty(1, 64).bfloat16().expand(2, 64)), "out"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            _C.linear(*arguments)
