"""Paged attention: every instruction set against float64, on pools whose unused slots and pages hold NaN."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_reference import DTYPES, PAGE_TOKENS, Pool, attend, same_bits, tolerance

from hetserve import _C


@dataclass(frozen=True)
class Chunk:
    """The last `rows` tokens of a sequence of `length`."""

    rows: int
    length: int


RAGGED = (Chunk(1, 1), Chunk(1, 15), Chunk(1, 16), Chunk(1, 17), Chunk(1, 300), Chunk(1, 129))
CHUNKS = (Chunk(5, 5), Chunk(40, 40), Chunk(16, 33), Chunk(7, 150), Chunk(1, 64), Chunk(33, 200), Chunk(2, 257))


class Batch:
    """Chunks laid out over a poisoned pool; `groups` names the head groups that are asked for.

    order: of page ids and items. "handed out": a sequence's heads get pages block by block, items in their order; "shuffled": neither.
    """

    def __init__(self, chunks, heads, group, head_dim, dtype, layout="packed", groups=None, seed=0, spread=1.0, order="handed out"):
        rng, torch_rng = random.Random(seed), torch.Generator().manual_seed(seed)
        self.chunks, self.heads, self.group, self.dim, self.dtype = chunks, heads, group, head_dim, dtype
        self.groups = range(heads) if groups is None else groups
        page_counts = [math.ceil(c.length / PAGE_TOKENS) for c in chunks]
        total = sum(page_counts) * heads
        self.pool = Pool(layers=2, pages=total + 3, head_dim=head_dim, dtype=dtype, layout=layout)
        ids = list(range(3, total + 3)) if order == "handed out" else rng.sample(range(total + 3), total)
        self.rows = sum(c.rows for c in chunks)
        self.q = (torch.randn(self.rows, heads * group * head_dim, generator=torch_rng) * spread).to(dtype)
        self.items, self.page_ids, self.sequences = [], [], {}
        row = 0
        for c, (chunk, pages) in enumerate(zip(chunks, page_counts, strict=True)):
            its, ids = ids[: pages * heads], ids[pages * heads :]
            for head in range(heads):
                mine = its[head::heads]
                k, v = (torch.randn(chunk.length, head_dim, generator=torch_rng).to(dtype) for _ in range(2))
                self.sequences[c, head] = (k, v)
                poison = torch.full((pages * PAGE_TOKENS - chunk.length, head_dim), math.nan, dtype=dtype)
                for half, tokens in enumerate((k, v)):
                    self.pool.kv[1, mine, half] = torch.cat([tokens, poison]).reshape(pages, PAGE_TOKENS, head_dim)
                if head in self.groups:
                    self.items.append((row, chunk.rows, head, len(self.page_ids), chunk.length, 0))
                self.page_ids += mine
            row += chunk.rows
        if order == "shuffled":
            rng.shuffle(self.items)
        self.pool.write()

    def plan(self, threads):
        items, page_ids = torch.tensor(self.items, dtype=torch.int32).reshape(-1, 6), torch.tensor(self.page_ids, dtype=torch.int32)
        return _C.AttentionPlan(self.pool.pool, items, page_ids, self.rows, self.heads * self.group, self.group, threads)

    def run(self, threads=1, window=0, scale=None):
        """[rows, kv_heads, group, head_dim]; what no item names stays NaN."""
        out = torch.full_like(self.q, math.nan)
        _C.attention(self.plan(threads), 1, self.q, out, scale or self.dim**-0.5, window)
        return out.reshape(self.rows, self.heads, self.group, self.dim)

    def check(self, out, window=0, scale=None):
        """Named rows and heads within rounding of float64, the others untouched."""
        q = self.q.reshape(self.rows, self.heads, self.group, self.dim)
        row = 0
        for c, chunk in enumerate(self.chunks):
            rows = slice(row, row + chunk.rows)
            for head in range(self.heads):
                got = out[rows, head]
                if head not in self.groups:
                    assert got.isnan().all()
                    continue
                k, v = self.sequences[c, head]
                want, size = attend(q[rows, head], k, v, chunk.length - chunk.rows + 1, scale or self.dim**-0.5, window)
                excess = ((got.double() - want).abs() / size.clamp(min=1e-30)).max().item()
                assert excess <= tolerance(self.dtype), f"{chunk}, head {head}: {excess:.3g} of the weighted |v|"
            row += chunk.rows


@pytest.mark.parametrize(("layout", "order"), [("packed", "handed out"), ("packed", "shuffled"), ("plain", "handed out")])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_and_chunks_match_float64(isa, dtype, head_dim, layout, order):
    for group, heads in ((1, 3), (2, 2), (4, 2), (7, 1)):
        batch = Batch(RAGGED + CHUNKS, heads, group, head_dim, dtype, layout, order=order)
        batch.check(batch.run())


@pytest.mark.parametrize("head_dim", [8, 24, 112, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dims_without_a_vector_path_still_work(isa, dtype, head_dim):
    batch = Batch(RAGGED[:4] + CHUNKS[:3], 2, 2, head_dim, dtype)
    batch.check(batch.run(threads=2))


@pytest.mark.parametrize("group", [1, 2, 3, 5, 6, 8, 12, 16, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_query_heads_per_group(isa, dtype, group):
    batch = Batch((Chunk(1, 150), Chunk(3, 37)), 5, group, 64, dtype)
    batch.check(batch.run())


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sequences_split_over_threads_and_merge(isa, dtype, threads, heads):
    batch = Batch((Chunk(1, 3000), Chunk(3, 1111)), heads, 2, 64, dtype)
    plan = batch.plan(threads)
    assert (plan.merges > 0) == (threads > 1) and plan.tasks >= 2 * threads
    batch.check(batch.run(threads))


@pytest.mark.parametrize("order", ["handed out", "shuffled"])
@pytest.mark.parametrize("window", [1, 7, 16, 50, 128, 10_000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_window_hides_old_tokens(isa, dtype, window, order):
    batch = Batch((*CHUNKS, Chunk(1, 700)), 2, 2, 64, dtype, order=order)
    batch.check(batch.run(threads=3, window=window), window)


@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_heads_that_are_not_named_stay_untouched(isa, layout):
    batch = Batch(RAGGED + CHUNKS, 5, 2, 64, torch.bfloat16, layout, groups=(1, 3, 4))
    batch.check(batch.run(threads=2))


@pytest.mark.parametrize("order", ["handed out", "shuffled"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_rise_with_every_page(isa, dtype, order):
    """From 0 to about 500 (in log2) within a sequence, then back: the running reference must be raised again and again, and never lowered."""
    batch = Batch((Chunk(1, 640), Chunk(3, 500)), 2, 2, 64, dtype, order=order)
    for c, chunk in enumerate(batch.chunks):
        for head in range(2):
            k, _ = batch.sequences[c, head]
            heights = torch.minimum(torch.arange(chunk.length), 2 * chunk.length // 3 - torch.arange(chunk.length) // 2)
            k.copy_((k * 0.1 + heights[:, None] / 64).to(dtype))
            item = next(i for i in batch.items if i[2] == head and i[4] == chunk.length)
            for token in range(chunk.length):
                batch.pool.kv[1, batch.page_ids[item[3] + token // PAGE_TOKENS], 0, token % PAGE_TOKENS] = k[token]
    batch.q.fill_(1.0)
    batch.pool.write()
    batch.check(batch.run(threads=2))


@pytest.mark.parametrize("spread", [0.0, 30.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_flat_and_extreme_scores(isa, dtype, spread):
    """From a uniform softmax to one that picks a single token: no overflow, no NaN. float32 scores of 1e5 have rounding errors of 1e-2."""
    batch = Batch((Chunk(1, 400), Chunk(9, 130)), 1, 4, 64, dtype, spread=spread)
    out = batch.run(threads=2)
    assert out.isfinite().all()
    if dtype == torch.bfloat16 and spread <= 30:
        batch.check(out)
    want, _ = attend(batch.q[:1].reshape(1, 4, 64), *batch.sequences[0, 0], 400, 64**-0.5, 0)
    torch.testing.assert_close(out[:1, 0].double(), want, atol=0.02, rtol=0.02)


def test_strided_rows_of_a_fused_projection(isa):
    batch = Batch((Chunk(1, 50), Chunk(4, 90)), 2, 2, 64, torch.bfloat16)
    wide_q, wide_out = (torch.full((batch.rows, 3 * 256), math.nan, dtype=torch.bfloat16) for _ in range(2))
    wide_q[:, 256:512] = batch.q
    _C.attention(batch.plan(1), 1, wide_q[:, 256:512], wide_out[:, :256], 64**-0.5)
    batch.check(wide_out[:, :256].reshape(batch.rows, 2, 2, 64))
    assert wide_out[:, 256:].isnan().all()


def test_the_same_step_gives_the_same_bits(isa):
    batch = Batch((Chunk(1, 2000), Chunk(20, 300)), 1, 2, 64, torch.bfloat16)
    first = batch.run(threads=4)
    assert all(same_bits(first, batch.run(threads=4)) for _ in range(5))


def test_a_plan_keeps_its_page_ids(isa):
    """The caller's page table may change for the next step while a step runs."""
    batch = Batch((Chunk(1, 100),), 1, 1, 64, torch.float32)
    page_ids = torch.tensor(batch.page_ids, dtype=torch.int32)
    plan = _C.AttentionPlan(batch.pool.pool, torch.tensor(batch.items, dtype=torch.int32), page_ids, 1, 1, 1)
    page_ids.fill_(2**31 - 1)
    out = torch.full_like(batch.q, math.nan)
    _C.attention(plan, 1, batch.q, out, 64**-0.5)
    batch.check(out.reshape(1, 1, 1, 64))


def test_no_items_is_nothing_to_do(isa):
    batch = Batch((Chunk(1, 5),), 1, 1, 64, torch.float32, groups=())
    assert batch.run(threads=2).isnan().all()


@settings(max_examples=15)
@given(
    chunks=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 150)), min_size=1, max_size=3),
    group=st.integers(1, 9),
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([64, 80, 96, 128]),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 4),
    window=st.sampled_from([0, 0, 3, 40]),
    order=st.sampled_from(["handed out", "shuffled"]),
    seed=st.integers(0, 99),
)
def test_any_batch(chunks, group, heads, head_dim, dtype, threads, window, order, seed):
    batch = Batch([Chunk(rows, rows + before) for rows, before in chunks], heads, group, head_dim, dtype, seed=seed, order=order)
    batch.check(batch.run(threads, window), window)
