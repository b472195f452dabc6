"""kv_store puts each row's heads where slots say, bit for bit, and nothing anywhere else."""

from __future__ import annotations

import pytest
import torch
from ops_reference import DTYPES, Pool, same_bits

from hetserve import _C


def expect(pool, layer, k, v, slots):
    for row, heads in enumerate(slots.tolist()):
        for head, slot in enumerate(heads):
            if slot >= 0:
                page, offset = divmod(slot, pool.page_tokens)
                columns = slice(head * pool.head_dim, (head + 1) * pool.head_dim)
                pool.kv[layer, page, 0, offset], pool.kv[layer, page, 1, offset] = k[row, columns], v[row, columns]


@pytest.mark.parametrize("layout", ["packed", "plain"])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 96, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_land_in_their_slots(isa, dtype, head_dim, layout):
    heads, rows = 3, 41
    pool = Pool(layers=2, pages=12, head_dim=head_dim, dtype=dtype, layout=layout)
    fused = torch.randn(rows, 3 * heads * head_dim).to(dtype)
    k, v = fused[:, heads * head_dim : 2 * heads * head_dim], fused[:, 2 * heads * head_dim :]
    slots = torch.randperm(12 * 16)[: rows * heads].reshape(rows, heads).int()
    slots[torch.rand(rows, heads) < 0.3] = -1
    _C.kv_store(pool.pool, 1, k, v, slots)
    expect(pool, 1, k, v, slots)
    assert same_bits(pool.memory, pool.expected())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_chunk_on_several_threads(isa, dtype, three_threads):
    """Neighbouring tokens share 4-byte pairs in the packed layout: threads must not undo each other's half."""
    heads, rows, dim = 2, 1500, 64
    pool = Pool(layers=1, pages=2 * 100, head_dim=dim, dtype=dtype)
    k, v = (torch.randn(rows, heads * dim).to(dtype) for _ in range(2))
    slots = (torch.arange(rows)[:, None] + torch.tensor([[3, 1600]])).int()
    _C.kv_store(pool.pool, 0, k, v, slots)
    expect(pool, 0, k, v, slots)
    assert same_bits(pool.memory, pool.expected())


def test_page_tokens_other_than_16(isa):
    pool = Pool(layers=1, pages=5, head_dim=64, dtype=torch.bfloat16, page_tokens=8)
    k, v = (torch.randn(9, 64).bfloat16() for _ in range(2))
    slots = torch.arange(5, 14).reshape(9, 1).int()
    _C.kv_store(pool.pool, 0, k, v, slots)
    expect(pool, 0, k, v, slots)
    assert same_bits(pool.memory, pool.expected())
