"""What the Python boundary refuses: every wrong argument is a ValueError (or TypeError) that names it, and no pointer is followed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ops_reference import Pool, aligned

from hetserve import _C

DIM, HEADS, ROWS = 64, 2, 4


def pool(dtype=torch.float32, layout="packed"):
    return Pool(layers=2, pages=8, head_dim=DIM, dtype=dtype, layout=layout).pool


def rows(columns, dtype=torch.float32, n=ROWS):
    return torch.zeros(n, columns, dtype=dtype)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def misaligned(n, columns):
    """A float32 tensor whose address is no multiple of 4 (torch allows it)."""
    raw = np.zeros(n * columns * 4 + 2, dtype=np.uint8)
    return torch.from_numpy(np.ndarray((n, columns), dtype=np.float32, buffer=raw.data, offset=raw.ctypes.data % 4 + 1))


WIDE = rows(HEADS * DIM)
BAD_ROWS = {
    "dtype": rows(HEADS * DIM, torch.float64),
    "half": rows(HEADS * DIM, torch.float16),
    "other dtype than the pool": rows(HEADS * DIM, torch.bfloat16),
    "too few rows": rows(HEADS * DIM, n=ROWS - 1),
    "too many rows": rows(HEADS * DIM, n=ROWS + 1),
    "too narrow": rows(HEADS * DIM - 8),
    "too wide": rows(HEADS * DIM + DIM),
    "three dimensions": torch.zeros(ROWS, HEADS, DIM),
    "transposed": rows(ROWS, n=HEADS * DIM).T,
    "every second column": rows(2 * HEADS * DIM)[:, ::2],
    "seven dimensions": torch.zeros(1, 1, 1, 1, 1, ROWS, HEADS * DIM),
    "not on the CPU": torch.zeros(ROWS, HEADS * DIM, device="meta"),
    "sparse": WIDE.to_sparse(),
    "misaligned": misaligned(ROWS, HEADS * DIM),
    "no tensor": "rows",
    "None": None,
    "a list": [[0.0] * HEADS * DIM] * ROWS,
    "numpy": np.zeros((ROWS, HEADS * DIM), dtype=np.float32),
}
SELF_OVERLAPPING = torch.zeros(1, HEADS * DIM).expand(ROWS, -1)


@pytest.mark.parametrize("what", BAD_ROWS)
def test_rows_of_the_wrong_kind(what):
    bad, ids = BAD_ROWS[what], ints(0, 1, 2, 3)
    plan = _C.AttentionPlan(pool(), ints([0, ROWS, 0, 0, ROWS, 0]).reshape(1, 6), ids, ROWS, HEADS, 1)
    slots = torch.zeros(ROWS, HEADS, dtype=torch.int32)
    weight, table = torch.ones(HEADS * DIM), torch.zeros(4, 2, DIM // 2)
    calls = [
        lambda: _C.attention(plan, 0, bad, WIDE.clone(), 1.0),
        lambda: _C.attention(plan, 0, WIDE, bad, 1.0),
        lambda: _C.kv_store(pool(), 0, bad, WIDE, slots),
        lambda: _C.kv_store(pool(), 0, WIDE, bad, slots),
        lambda: _C.rms_norm(bad, weight, WIDE.clone(), 1e-5),
        lambda: _C.rms_norm(WIDE, weight, bad, 1e-5),
        lambda: _C.add_rms_norm(WIDE, bad, weight, WIDE.clone(), 1e-5),
        lambda: _C.layer_norm(WIDE, weight, weight, bad, 1e-5),
        lambda: _C.add_layer_norm(WIDE, bad, weight, weight, WIDE.clone(), 1e-5),
        lambda: _C.silu_mul(bad, rows(HEADS * DIM // 2)),
        lambda: _C.silu_mul(rows(2 * HEADS * DIM), bad),
    ]
    if what not in ("too narrow", "too wide"):  # rope takes any whole number of heads
        calls.append(lambda: _C.rope(bad, WIDE.clone(), ints(0, 1, 2, 3), table, DIM))
    if what not in ("too few rows", "too many rows", "too wide"):  # another number of rows or heads is fine for packing
        calls.append(lambda: _C.heads_pack(bad, ints([0, 0]).reshape(1, 2), 1, rows(DIM, n=1)))
    for call in calls:
        with pytest.raises(ValueError, match=r".+ is false, csrc/\w+/\w+\.cpp:\d+"):
            call()


def test_written_rows_must_not_overlap():
    plan = _C.AttentionPlan(pool(), ints([0, ROWS, 0, 0, ROWS, 0]).reshape(1, 6), ints(0), ROWS, HEADS, 1)
    with pytest.raises(ValueError, match="out: is written"):
        _C.attention(plan, 0, WIDE, SELF_OVERLAPPING, 1.0)
    with pytest.raises(ValueError, match="out: is written"):
        _C.rms_norm(WIDE, torch.ones(HEADS * DIM), SELF_OVERLAPPING, 1e-5)
    with pytest.raises(ValueError, match="residual: is written"):
        _C.add_rms_norm(WIDE, SELF_OVERLAPPING, torch.ones(HEADS * DIM), WIDE.clone(), 1e-5)
    with pytest.raises(ValueError, match="q: is written"):
        _C.rope(SELF_OVERLAPPING, WIDE.clone(), ints(0, 0, 0, 0), torch.zeros(1, 2, 32), DIM)


GOOD_ITEM = (0, 1, 0, 0, 40, 0)  # q_row, n_rows, head_group, page_begin, length: 3 pages of the 4 listed
BAD_ITEMS = {
    "row below 0": (-1, 1, 0, 0, 40, 0),
    "row past the end": (ROWS, 1, 0, 0, 40, 0),
    "rows past the end": (2, 3, 0, 0, 40, 0),
    "rows that overflow": (1, 2**31 - 1, 0, 0, 2**31 - 1, 0),
    "no rows": (0, 0, 0, 0, 40, 0),
    "negative rows": (0, -3, 0, 0, 40, 0),
    "head group below 0": (0, 1, -1, 0, 40, 0),
    "head group past the end": (0, 1, HEADS, 0, 40, 0),
    "huge head group": (0, 1, 2**31 - 1, 0, 40, 0),
    "length 0": (0, 1, 0, 0, 0, 0),
    "negative length": (0, 1, 0, 0, -16, 0),
    "shorter than its rows": (0, 4, 0, 0, 3, 0),
    "page list too short": (0, 1, 0, 0, 65, 0),
    "page list too short from there": (0, 1, 0, 2, 40, 0),
    "huge length": (0, 1, 0, 0, 2**31 - 1, 0),
    "page_begin below 0": (0, 1, 0, -1, 40, 0),
    "page_begin past the end": (0, 1, 0, 5, 1, 0),
    "huge page_begin": (0, 1, 0, 2**31 - 1, 40, 0),
}


@pytest.mark.parametrize("what", BAD_ITEMS)
def test_items_that_point_outside(what):
    items = torch.tensor([GOOD_ITEM, BAD_ITEMS[what]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"items\[1\]"):
        _C.AttentionPlan(pool(), items, ints(0, 1, 2, 3), ROWS, HEADS, 1)


@pytest.mark.parametrize("page", [-1, 8, 2**31 - 1, -(2**31)])
def test_page_ids_outside_the_pool(page):
    items = ints(*GOOD_ITEM).reshape(1, 6)
    with pytest.raises(ValueError, match=f"page_ids: page id {page} at 2"):
        _C.AttentionPlan(pool(), items, ints(0, 7, page, 1), ROWS, HEADS, 1)
    _C.AttentionPlan(pool(), items, ints(0, 7, 1, page), ROWS, HEADS, 1)  # the fourth is not used
    for call in (
        lambda ids: _C.page_copy(pool(), ids, pool(), ints(0), 0, 1),
        lambda ids: _C.page_copy(pool(), ints(0), pool(), ids, 0, 1),
        lambda ids: _C.page_gather(pool(), ids, 0, 1, torch.zeros(1, 1, 2, 16, DIM)),
        lambda ids: _C.page_scatter(pool(), ids, 0, 1, torch.zeros(1, 1, 2, 16, DIM)),
    ):
        with pytest.raises(ValueError, match=f"page id {page}"):
            call(ints(page))


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([GOOD_ITEM]),  # int64
        torch.tensor([GOOD_ITEM], dtype=torch.float32),
        torch.tensor(GOOD_ITEM, dtype=torch.int32),
        torch.tensor([GOOD_ITEM[:5]], dtype=torch.int32),
        torch.tensor([GOOD_ITEM, GOOD_ITEM], dtype=torch.int32)[:, ::2],
        np.array([GOOD_ITEM], dtype=np.int64),
        np.array([GOOD_ITEM], dtype=np.int32)[:, ::-1],
        b"0123456789",
        None,
        [GOOD_ITEM],
    ],
)
def test_items_of_the_wrong_kind(bad):
    with pytest.raises(ValueError, match="items: "):
        _C.AttentionPlan(pool(), bad, ints(0, 1, 2, 3), ROWS, HEADS, 1)


def test_numpy_indices_are_taken():
    plan = _C.AttentionPlan(pool(), np.array([GOOD_ITEM], dtype=np.int32), np.arange(4, dtype=np.int32), ROWS, HEADS, 1)
    assert plan.items == 1


@pytest.mark.parametrize(
    ("rows_", "heads", "group", "threads"), [(-1, 2, 1, 1), (4, 2, 0, 1), (4, 3, 2, 1), (4, 0, 1, 1), (4, 2, 1, -1), (4, 2, 1, 10**6)]
)
def test_plans_of_impossible_shape(rows_, heads, group, threads):
    with pytest.raises(ValueError):
        _C.AttentionPlan(pool(), torch.zeros(0, 6, dtype=torch.int32), ints(0), rows_, heads, group, threads)


@pytest.mark.parametrize("slot", [-2, 8 * 16, 2**31 - 1, -(2**31)])
def test_slots_outside_the_pool(slot):
    slots = torch.zeros(ROWS, HEADS, dtype=torch.int32)
    slots[3, 1] = slot
    with pytest.raises(ValueError, match=f"slots: {slot} at 7"):
        _C.kv_store(pool(), 0, WIDE, WIDE, slots)


@pytest.mark.parametrize("layer", [-1, 2, 2**40])
def test_layers_outside_the_pool(layer):
    plan = _C.AttentionPlan(pool(), ints(*GOOD_ITEM).reshape(1, 6), ints(0, 1, 2), ROWS, HEADS, 1)
    with pytest.raises(ValueError, match="layer"):
        _C.attention(plan, layer, WIDE, WIDE.clone(), 1.0)
    with pytest.raises(ValueError, match="layer"):
        _C.kv_store(pool(), layer, WIDE, WIDE, torch.zeros(ROWS, HEADS, dtype=torch.int32))
    for first, last in ((layer, layer + 1), (0, 3), (1, 0)):
        with pytest.raises(ValueError, match="layers"):
            _C.page_gather(pool(), ints(0), first, last, torch.zeros(1, 1, 2, 16, DIM))


def test_copies_that_race():
    p = pool()
    with pytest.raises(ValueError, match="page 3 is written twice"):
        _C.page_copy(pool(), ints(0, 1), p, ints(3, 3), 0, 1)
    with pytest.raises(ValueError, match="page 1 is read at 1 and written at 0"):
        _C.page_copy(p, ints(0, 1), p, ints(1, 2), 0, 1)
    with pytest.raises(ValueError, match="page 3 is written twice"):
        _C.page_scatter(p, ints(3, 3), 0, 1, torch.zeros(2, 1, 2, 16, DIM))
    _C.page_copy(p, ints(2), p, ints(2), 0, 1)


def test_page_rows_of_the_wrong_shape():
    for shape in ((1, 1, 2, 16, DIM), (2, 2, 2, 16, DIM), (2, 1, 2, 8, DIM), (2, 1, 2, 16, DIM, 1), (2, 1, 2 * 16 * DIM)):
        with pytest.raises(ValueError, match="out: expected"):
            _C.page_gather(pool(), ints(0, 1), 0, 1, torch.zeros(shape))
    with pytest.raises(ValueError, match="contiguous"):
        _C.page_gather(pool(), ints(0, 1), 0, 1, torch.zeros(2, 1, 2, 16, 2 * DIM)[..., :DIM])
    with pytest.raises(ValueError, match="contiguous float32"):
        _C.page_gather(pool(), ints(0, 1), 0, 1, torch.zeros(2, 1, 2, 16, DIM, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="pools differ"):
        _C.page_copy(pool(), ints(0), pool(torch.bfloat16), ints(0), 0, 1)
    with pytest.raises(ValueError, match="src_pages has 1 ids"):
        _C.page_copy(pool(), ints(0), pool(), ints(0, 1), 0, 1)


@pytest.mark.parametrize("pair", [(-1, 0), (ROWS, 0), (0, -1), (0, HEADS), (2**31 - 1, 2**31 - 1)])
def test_pairs_outside_the_rows(pair):
    pairs, packed = torch.tensor([(0, 0), pair], dtype=torch.int32), rows(DIM, n=2)
    with pytest.raises(ValueError, match=r"pairs\[1\]"):
        _C.heads_pack(WIDE, pairs, 1, packed)
    with pytest.raises(ValueError, match=r"pairs\[1\]"):
        _C.heads_unpack(packed, pairs, 1, WIDE.clone())


@pytest.mark.parametrize("span", [0, -1, 3, 128])
def test_spans_that_do_not_divide(span):
    with pytest.raises(ValueError, match="span"):
        _C.heads_pack(WIDE, ints([0, 0]).reshape(1, 2), span, rows(DIM, n=1)) if span != 128 else _C.heads_pack(
            WIDE, ints([0, 0]).reshape(1, 2), span, rows(DIM + 8, n=1)
        )


def test_rope_arguments():
    q, table = rows(2 * DIM), torch.zeros(10, 2, DIM // 2)
    for position in (-1, 10, 2**31 - 1):
        with pytest.raises(ValueError, match=r"positions\[2\]"):
            _C.rope(q, q.clone(), ints(0, 9, position, 0), table, DIM)
    for head_dim in (0, -64, 48, 256):
        with pytest.raises(ValueError, match="head_dim"):
            _C.rope(q, q.clone(), ints(0, 0, 0, 0), table, head_dim)
    for bad in (table.bfloat16(), table[:, :1], table[0], torch.zeros(10, 3, 32), torch.zeros(10, 2, 0), table.transpose(1, 2)):
        with pytest.raises(ValueError, match="cos_sin"):
            _C.rope(q, q.clone(), ints(0, 0, 0, 0), bad, DIM)
    with pytest.raises(ValueError, match="positions"):
        _C.rope(q, q.clone(), torch.zeros(4, dtype=torch.int64), table, DIM)
    with pytest.raises(ValueError, match="positions 3"):
        _C.rope(q, q.clone(), ints(0, 0, 0), table, DIM)


def test_weights_of_the_wrong_kind():
    x, good = rows(DIM), torch.ones(DIM)
    for bad in (torch.ones(DIM - 1), torch.ones(DIM, dtype=torch.bfloat16), torch.ones(1, DIM), torch.ones(2 * DIM)[::2], torch.ones(1).expand(DIM)):
        with pytest.raises(ValueError, match="weight: "):
            _C.rms_norm(x, bad, x.clone(), 1e-5)
        with pytest.raises(ValueError, match="bias: "):
            _C.layer_norm(x, good, bad, x.clone(), 1e-5)


BAD_POOLS = {
    "no layers": (0, 8, 16, 64),
    "negative pages": (1, -8, 16, 64),
    "more than the storage": (1, 9, 16, 64),
    "overflow": (2**40, 2**20, 16, 64),
    "slots past int32": (1, 2**28, 16, 64),
    "head_dim 12": (1, 1, 16, 12),
    "head_dim 4096": (1, 1, 16, 4096),
    "page of 1,000": (1, 1, 1000, 8),
    "no tokens": (1, 8, 0, 64),
}


@pytest.mark.parametrize("what", BAD_POOLS)
def test_pools_that_cannot_be(what):
    with pytest.raises(ValueError):
        _C.KvPool(aligned(8 * 2 * 16 * 64, torch.float32), *BAD_POOLS[what], "float32")


def test_pool_storage_and_names():
    storage = aligned(8 * 2 * 16 * 64, torch.float32)
    with pytest.raises(ValueError, match="multiple of 64"):
        _C.KvPool(storage[4:], 1, 1, 16, 64, "float32")
    with pytest.raises(ValueError, match="contiguous"):
        _C.KvPool(storage[::2], 1, 1, 16, 64, "float32")
    with pytest.raises(ValueError, match="multiples of 2"):
        _C.KvPool(storage, 1, 1, 15, 64, "bfloat16")
    for dtype in ("float16", "int32", "double", 3):
        with pytest.raises(ValueError, match="dtype"):
            _C.KvPool(storage, 1, 1, 16, 64, dtype)
    with pytest.raises(ValueError, match="layout"):
        _C.KvPool(storage, 1, 1, 16, 64, "float32", "vnni")
    with pytest.raises((TypeError, ValueError)):
        _C.AttentionPlan(None, ints(*GOOD_ITEM).reshape(1, 6), ints(0, 1, 2), ROWS, HEADS, 1)


def test_a_pool_describes_itself_and_keeps_its_memory():
    p = _C.KvPool(aligned(3 * 8 * 2 * 16 * 64, torch.bfloat16), 3, 8, 16, 64, torch.bfloat16)
    assert (p.layers, p.pages, p.page_tokens, p.head_dim, p.dtype, p.layout) == (3, 8, 16, 64, "bfloat16", "packed")
    assert p.layer_page_bytes == 2 * 16 * 64 * 2 and p.page_bytes == 3 * p.layer_page_bytes
    assert _C.KvPool.bytes(3, 8, 16, 64, "bfloat16") == 8 * p.page_bytes
    _C.kv_store(p, 2, torch.ones(1, 64).bfloat16(), torch.ones(1, 64).bfloat16(), ints([127]).reshape(1, 1))
    out = torch.zeros(1, 3, 2, 16, 64, dtype=torch.bfloat16)
    _C.page_gather(p, ints(7), 0, 3, out)
    assert out[0, 2, :, 15].eq(1).all() and out.sum() == 128


def test_advise_huge_keeps_contents():
    storage = torch.arange(3 * 2**20, dtype=torch.int32)
    assert _C.advise_huge(storage) in (True, False)
    assert torch.equal(storage, torch.arange(3 * 2**20, dtype=torch.int32))
    assert _C.advise_huge(torch.zeros(3)) is False
