"""Pages between pools and to plain rows: bits arrive, other pages and layers keep theirs."""

from __future__ import annotations

import pytest
import torch
from ops_reference import DTYPES, Pool, same_bits

from hetserve import _C


def filled(layers, pages, dtype, layout, head_dim=80):
    pool = Pool(layers, pages, head_dim, dtype, layout)
    pool.kv.copy_(torch.randn(pool.kv.shape).to(dtype))
    pool.write()
    return pool


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dst_layout", ["packed", "plain"])
@pytest.mark.parametrize("src_layout", ["packed", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_copy_across_pools_and_layouts(isa, dtype, src_layout, dst_layout):
    src, dst = filled(4, 9, dtype, src_layout), filled(5, 7, dtype, dst_layout)
    _C.page_copy(src.pool, ints(8, 0, 3), dst.pool, ints(2, 6, 0), 1, 3)
    dst.kv[1:3, [2, 6, 0]] = src.kv[1:3, [8, 0, 3]]
    assert same_bits(dst.memory, dst.expected())
    assert same_bits(src.memory, src.expected())


def test_copy_inside_a_pool(isa):
    pool = filled(2, 6, torch.bfloat16, "packed")
    _C.page_copy(pool.pool, ints(1, 4), pool.pool, ints(3, 0), 0, 2)
    pool.kv[:, [3, 0]] = pool.kv[:, [1, 4]]
    assert same_bits(pool.memory, pool.expected())


@pytest.mark.parametrize("layout", ["packed", "plain"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_then_scatter(isa, dtype, layout):
    src, dst = filled(3, 8, dtype, layout), filled(3, 8, dtype, layout)
    rows = torch.empty(3, 2, 2, 16, 80, dtype=dtype)
    _C.page_gather(src.pool, ints(7, 2, 5), 1, 3, rows)
    assert same_bits(rows, src.kv[1:3, [7, 2, 5]].transpose(0, 1))
    _C.page_scatter(dst.pool, ints(0, 1, 6), 1, 3, rows)
    dst.kv[1:3, [0, 1, 6]] = src.kv[1:3, [7, 2, 5]]
    assert same_bits(dst.memory, dst.expected())


def test_many_pages_on_several_threads(isa, three_threads):
    src, dst = filled(2, 400, torch.bfloat16, "packed", 64), filled(2, 400, torch.bfloat16, "plain", 64)
    order = torch.randperm(400).int()
    _C.page_copy(src.pool, torch.arange(400).int(), dst.pool, order, 0, 2)
    dst.kv[:, order.long()] = src.kv
    assert same_bits(dst.memory, dst.expected())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("span", [1, 2, 4])
def test_heads_pack_and_unpack(isa, dtype, span):
    rows, groups, dim = 9, 3, 64
    x = torch.randn(rows, groups * span * dim + 40).to(dtype)[:, 40:]
    pairs = torch.tensor([[8, 0], [0, 2], [3, 1], [3, 0]], dtype=torch.int32)
    packed = torch.empty(4, span * dim, dtype=dtype)
    _C.heads_pack(x, pairs, span, packed)
    by_group = x.reshape(rows, groups, span * dim)
    assert torch.equal(packed, by_group[pairs[:, 0].long(), pairs[:, 1].long()])

    y = torch.full((rows, groups * span * dim), 7.0, dtype=dtype)
    _C.heads_unpack(packed, pairs, span, y)
    want = torch.full((rows, groups, span * dim), 7.0, dtype=dtype)
    want[pairs[:, 0].long(), pairs[:, 1].long()] = packed
    assert torch.equal(y, want.reshape(rows, -1))
