"""Norms, rope and silu_mul against torch, rounded where transformers rounds; strided views; nothing written beside the result."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from ops_reference import DTYPES

from hetserve import _C

SHAPES = [(1, 1024), (5, 64), (33, 80), (7, 1000), (300, 2816), (2, 7)]


def close(got, want, dtype, ulps=2.0, terms=None):
    """Within `ulps` roundings of the result and four float32 roundings of the terms it is the sum of."""
    ulp = 2**-23 if dtype == torch.float32 else 2**-8
    error, want = (got.double() - want.double()).abs(), want.double().abs()
    limit = ulps * ulp * want + 4 * 2**-23 * (want if terms is None else terms) + 1e-30
    assert got.dtype == dtype
    assert (error <= limit).all(), f"{(error / limit).max():.3g} times the allowed error"


def exact_rms_norm(x, weight, eps):
    wide = x.double()
    return weight.double() * wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)


def hf_rms_norm(x, weight, eps):
    """transformers' LlamaRMSNorm."""
    wide = x.float()
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * normal.to(x.dtype)


def inside(shape, dtype, margin=24):
    """A view with other memory around every row, all NaN; (whole, view)."""
    whole = torch.full((shape[0], shape[1] + 2 * margin), math.nan, dtype=dtype)
    return whole, whole[:, margin:-margin]


def assert_margins_untouched(whole, margin=24):
    assert whole[:, :margin].isnan().all() and whole[:, -margin:].isnan().all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(isa, dtype, shape):
    x, weight = (torch.randn(shape) * 3).to(dtype), torch.randn(shape[1]).to(dtype)
    whole, out = inside(shape, dtype)
    _C.rms_norm(x, weight, out, 1e-5)
    close(out, exact_rms_norm(x, weight, 1e-5), dtype)
    assert_margins_untouched(whole)
    _C.rms_norm(x, weight, x, 1e-5)
    assert torch.equal(x, out)


def test_rms_norm_rounds_where_transformers_does(isa):
    """Before the weight too. Other float32 sums may tip a rounding now and then; another place of rounding tips a quarter of them."""
    x, weight = (torch.randn(64, 1024) * 3).bfloat16(), torch.randn(1024).bfloat16()
    out = torch.empty_like(x)
    _C.rms_norm(x, weight, out, 1e-5)
    assert (out == hf_rms_norm(x, weight, 1e-5)).float().mean() > 0.999


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(isa, dtype, shape):
    x, residual, weight = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
    total = residual + x
    whole, out = inside(shape, dtype)
    _C.add_rms_norm(x, residual, weight, out, 1e-6)
    assert torch.equal(residual, total)
    close(out, exact_rms_norm(total, weight, 1e-6), dtype)
    assert_margins_untouched(whole)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_with_and_without_residual(isa, dtype, shape):
    x, residual = (torch.randn(shape) + 5).to(dtype), torch.randn(shape).to(dtype)
    weight, bias = torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    whole, out = inside(shape, dtype)
    _C.layer_norm(x, weight, bias, out, 1e-5)
    wide = (shape[1:], weight.double(), bias.double(), 1e-5)
    terms = 12 * weight.double().abs() + bias.double().abs()  # x of up to 10 standard deviations, less its mean
    close(out, F.layer_norm(x.double(), *wide), dtype, terms=terms)
    assert_margins_untouched(whole)
    total = residual + x
    _C.add_layer_norm(x, residual, weight, bias, out, 1e-5)
    assert torch.equal(residual, total)
    close(out, F.layer_norm(total.double(), *wide), dtype, terms=terms)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_heads_inside_a_fused_projection(isa, dtype):
    """Qwen3's q and k norms: x is [rows, heads, head_dim], a view, and is written in place."""
    fused = torch.randn(6, 5 * 64).to(dtype)
    before, weight = fused.clone(), torch.randn(64).to(dtype)
    heads = fused[:, 64:256].unflatten(1, (3, 64))
    _C.rms_norm(heads, weight, heads, 1e-6)
    close(heads, exact_rms_norm(before[:, 64:256].unflatten(1, (3, 64)), weight, 1e-6), dtype)
    assert torch.equal(fused[:, :64], before[:, :64]) and torch.equal(fused[:, 256:], before[:, 256:])


def rotate(x, cos_sin, positions, dim):
    """Rotate-half in float64; x [rows, heads * dim]."""
    half = cos_sin.shape[2]
    heads = x.double().unflatten(1, (-1, dim))
    cos, sin = (cos_sin[positions.long(), i].double()[:, None, :] for i in range(2))
    a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).flatten(1)


@pytest.mark.parametrize(("dim", "rot"), [(64, 64), (80, 80), (96, 96), (128, 128), (80, 32), (24, 24)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope(isa, dtype, dim, rot):
    q_heads, kv_heads, rows = 5, 2, 37
    angles = torch.arange(100)[:, None] * 10000.0 ** (-torch.arange(rot // 2) / (rot // 2))
    cos_sin = torch.stack([angles.cos(), angles.sin()], 1)
    fused = torch.randn(rows, (q_heads + 2 * kv_heads) * dim).to(dtype)
    q, k, v = fused.split([q_heads * dim, kv_heads * dim, kv_heads * dim], 1)
    positions = torch.randint(0, 100, (rows,), dtype=torch.int32)
    want_q, want_k, before_v = rotate(q, cos_sin, positions, dim), rotate(k, cos_sin, positions, dim), v.clone()
    _C.rope(q, k, positions, cos_sin, dim)
    close(q, want_q, dtype, ulps=1, terms=8)
    close(k, want_k, dtype, ulps=1, terms=8)
    assert torch.equal(v, before_v)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(isa, dtype, shape):
    rows, n = shape
    gate_up = (torch.randn(rows, 2 * n) * 4).to(dtype)
    gate_up[0, :3] = torch.tensor([-200.0, 200.0, -80.0]).to(dtype)
    whole, out = inside(shape, dtype)
    _C.silu_mul(gate_up, out)
    gate, up = gate_up.double().chunk(2, 1)
    close(out, F.silu(gate) * up, dtype, ulps=4 if dtype == torch.float32 else 1)
    assert_margins_untouched(whole)


def test_threads_do_not_change_a_bit(isa, three_threads):
    x, weight = torch.randn(700, 1024).bfloat16(), torch.randn(1024).bfloat16()
    one, many = torch.empty_like(x), torch.empty_like(x)
    _C.rms_norm(x, weight, many, 1e-5)
    torch.set_num_threads(1)
    _C.rms_norm(x, weight, one, 1e-5)
    assert torch.equal(one, many)


def test_no_rows(isa):
    empty = torch.empty(0, 64)
    _C.rms_norm(empty, torch.ones(64), empty, 1e-5)
    _C.silu_mul(torch.empty(0, 128), empty)
    _C.rope(empty, empty, torch.empty(0, dtype=torch.int32), torch.zeros(4, 2, 32), 64)
