"""What only devices have, on the emulated one and on a GPU: float16, plans in device memory, argmax, and how a step is cut into blocks."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import pytest
import torch
from on_device import need_gpu, use_device
from ops_reference import PAGE_TOKENS, Pool, same_bits
from test_attention import CHUNKS, RAGGED, Batch, Chunk

from hetserve import _C

TILE_VECTORS, CHUNK_TOKENS, LEAST_PIECE = 64, 64, 256  # csrc/include/hetserve/device_plan.h, csrc/cuda/plan.cpp


@pytest.fixture
def emulated() -> Iterator[None]:
    before = _C.info()["isa"]
    _C.use_isa("cuda-emulated")
    yield
    _C.use_isa(before)


@pytest.fixture(params=["emulated", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where ops run: on fibers, with the stand-ins that tests on a GPU use; or on the GPU."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        use_device(monkeypatch, "cpu")
    else:
        need_gpu()
        use_device(monkeypatch, "cuda")
    yield request.param


@pytest.mark.parametrize("layout", ["plain", "packed"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
def test_float16_attention(device: str, head_dim: int, layout: str) -> None:
    for group, heads in ((1, 2), (4, 2), (8, 1)):
        batch = Batch(RAGGED + CHUNKS, heads, group, head_dim, torch.float16, layout)
        batch.check(batch.run(threads=3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("group", [1, 5, 16, 17, 64, 71])
def test_groups_of_every_kind_of_tile(device: str, dtype: torch.dtype, group: int) -> None:
    """Warps that share tokens (up to 16 vectors), warps that share vectors (up to 64), and more query heads than a tile has."""
    batch = Batch((Chunk(1, 600), Chunk(9, 300)), 2, group, 64, dtype, "plain")
    batch.check(batch.run(threads=4))


@pytest.mark.parametrize("window", [1, 63, 64, 65, 200])
def test_windows_on_tensor_cores(device: str, window: int) -> None:
    batch = Batch((*CHUNKS, Chunk(1, 700), Chunk(70, 400)), 2, 2, 64, torch.bfloat16, "plain")
    batch.check(batch.run(threads=3, window=window), window)


def test_float16_rows(device: str) -> None:
    x, gate_up = torch.randn(5, 96).half(), torch.randn(3, 128).half()
    out, weight = torch.empty_like(x), torch.randn(96).half()
    _C.rms_norm(x, weight, out, 1e-5)
    torch.testing.assert_close(out, torch.nn.functional.rms_norm(x.float(), (96,), weight.float(), 1e-5).half(), atol=2e-3, rtol=2e-3)
    halves = torch.empty(3, 64, dtype=torch.float16)
    _C.silu_mul(gate_up, halves)
    gate, up = gate_up.float().chunk(2, -1)
    torch.testing.assert_close(halves, (torch.nn.functional.silu(gate) * up).half(), atol=1e-3, rtol=1e-3)


def test_float16_rounds_as_torch_does(device: str) -> None:
    """Rotary by an angle of which the cosine is the number and the sine 0: every kind of number, also those below the normal range."""
    numbers = [
        1.0,
        2.0**-14,
        2.0**-15,
        2.0**-24,
        1.5 * 2.0**-24,
        2.0**-25,
        2.0**-26,
        1.00048828125,
        1.00146484375,
        0.3333333,
        65504.0,
        65519.0,
        65520.0,
        1e9,
    ]
    values = torch.tensor([*numbers, *(-x for x in numbers), *torch.randn(36).tolist()])
    cos_sin = torch.stack([values, torch.zeros_like(values)])[None]
    q, k = torch.ones(1, 128).half(), torch.ones(1, 128).half()
    _C.rope(q, k, torch.zeros(1, dtype=torch.int32), cos_sin, 128)
    assert same_bits(q[0, :64], values.half()) and same_bits(k[0, 64:], values.half())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 31, 1024, 5000, 8195])
def test_argmax(device: str, dtype: torch.dtype, columns: int) -> None:
    x = torch.randn(7, columns).to(dtype)
    x[1] = 0.5  # the lowest of equal ones
    x[2, columns // 2] = math.nan  # greater than any number
    x[3] = -math.inf
    out = torch.empty(7, dtype=torch.int32)
    _C.argmax(x, out)
    assert out.tolist() == x.float().numpy().argmax(-1).tolist()


def test_float16_and_argmax_are_for_devices() -> None:
    x = torch.randn(2, 64).half()
    with pytest.raises(ValueError, match="float16 is for CUDA tensors"):
        _C.rms_norm(x, torch.ones(64).half(), torch.empty_like(x), 1e-5)
    with pytest.raises(ValueError, match="only for CUDA tensors"):
        _C.argmax(torch.randn(2, 64), torch.empty(2, dtype=torch.int32))


# ------------------------------------------------------------------------------------------------------- plans in device memory


def device_plan(batch: Batch, items: int, item_rows: int, pages: int) -> _C.DeviceAttentionPlan:
    device_bytes, host_bytes = _C.DeviceAttentionPlan.bytes(batch.pool.pool, batch.group, items, item_rows, pages)
    memory, staging = (torch.full((size,), 0xFF, dtype=torch.uint8) for size in (device_bytes, host_bytes))
    return _C.DeviceAttentionPlan(batch.pool.pool, batch.heads * batch.group, batch.group, items, item_rows, pages, memory, staging)


def ints(rows: list[object], columns: int | None = None) -> torch.Tensor:
    made = torch.tensor(rows, dtype=torch.int32)
    return made if columns is None else made.reshape(-1, columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_plan_serves_step_after_step(emulated: None, dtype: torch.dtype) -> None:
    """As a captured graph would: the same memory and arguments, other contents."""
    batch = Batch((Chunk(1, 900), Chunk(1, 40), Chunk(30, 200)), 3, 2, 64, dtype, "plain")
    plan = device_plan(batch, len(batch.items), 3 * 32, len(batch.page_ids))
    every = list(batch.items)
    for chosen in (every, every[:4], every[5:], [], every):
        plan.set(ints(chosen, 6), ints(batch.page_ids), batch.rows)
        out = torch.full_like(batch.q, math.nan)
        _C.attention(plan, 1, batch.q, out, 64**-0.5)
        batch.items = chosen
        assert same_bits(out.reshape(batch.rows, 3, 2, 64), batch.run(threads=4))
    batch.check(out.reshape(batch.rows, 3, 2, 64))


def test_a_step_that_does_not_fit_is_refused(emulated: None) -> None:
    batch = Batch((Chunk(1, 900), Chunk(4, 40)), 2, 2, 64, torch.bfloat16, "plain")
    page_ids, rows = ints(batch.page_ids), batch.rows
    for items, item_rows, pages in ((3, 99, 999), (4, 9, 999), (4, 99, len(page_ids) - 1)):
        with pytest.raises(ValueError, match="the plan has room for"):
            device_plan(batch, items, item_rows, pages).set(ints(batch.items, 6), page_ids, rows)
    plan = device_plan(batch, 4, 10, len(page_ids))
    with pytest.raises(ValueError, match="page id"):
        plan.set(ints(batch.items, 6), page_ids + 10_000, rows)
    with pytest.raises(ValueError, match="length"):
        plan.set(ints([(0, 1, 0, 0, 0, 0)], 6), page_ids, rows)
    with pytest.raises(ValueError, match="expected uint8"):
        _C.DeviceAttentionPlan(batch.pool.pool, 4, 2, 4, 10, 99, torch.empty(10, dtype=torch.uint8), torch.empty(9999, dtype=torch.uint8))


def test_what_goes_along_with_a_step_and_where_it_waits(emulated: None) -> None:
    """The caller's words arrive as they are, only what a step needs of a page table goes along, and the halves of the staging memory take turns."""
    batch = Batch((Chunk(1, 100), Chunk(1, 40)), 1, 2, 64, torch.bfloat16, "plain")
    pages = [-(-item[4] // PAGE_TOKENS) for item in batch.items]
    table, items = torch.full((100,), 10_000, dtype=torch.int32), ints(list(batch.items), 6)  # no page of the pool
    for at, (item, count) in enumerate(zip(batch.items, pages, strict=True)):
        items[at, 3] = 60 - 30 * at
        table[60 - 30 * at :][:count] = ints(batch.page_ids)[item[3] :][:count]
    device_bytes, host_bytes = _C.DeviceAttentionPlan.bytes(batch.pool.pool, 2, 2, 2, sum(pages), 5)
    memory, staging = torch.zeros(device_bytes, dtype=torch.uint8), torch.zeros(host_bytes, dtype=torch.uint8)
    plan = _C.DeviceAttentionPlan(batch.pool.pool, 2, 2, 2, 2, sum(pages), memory, staging, 5)
    first, halves = plan.first_word, staging.chunk(2)
    for turn in range(3):
        assert plan.half == turn % 2
        words, other = halves[turn % 2][first:][:20].view(torch.int32), halves[1 - turn % 2].clone()
        words.copy_(torch.arange(5, dtype=torch.int32) + turn)
        plan.set(items, table, batch.rows)
        assert memory[first:][:20].view(torch.int32).tolist() == [turn, turn + 1, turn + 2, turn + 3, turn + 4]
        assert torch.equal(other, halves[1 - turn % 2])
        out = torch.full_like(batch.q, math.nan)
        _C.attention(plan, 1, batch.q, out, 64**-0.5)
        batch.check(out.reshape(batch.rows, 1, 2, 64))


def test_items_that_name_a_row_and_head_twice_are_refused(emulated: None) -> None:
    """Or there would be more of them than blocks."""
    batch = Batch((Chunk(1, 20),), 1, 1, 64, torch.bfloat16, "plain")
    with pytest.raises(ValueError, match="named twice"):
        device_plan(batch, 2, 2, 9).set(ints([*batch.items, *batch.items], 6), ints(batch.page_ids), batch.rows)


@pytest.mark.parametrize("seed", range(5))
def test_attention_is_launched_with_the_blocks_that_so_many_rows_can_have(emulated: None, seed: int) -> None:
    batch, rng = Batch((Chunk(1, 20),), 3, 4, 64, torch.bfloat16, "plain"), random.Random(seed)
    plan = device_plan(batch, 64 * 3, 64 * 3, 10**6)
    for rows in (1, 2, 8, 64):
        items = [(row, 1, head, 0, rng.choice([1, 300, 5000, 40_000]), 0) for row in range(rows) for head in range(3) if rng.random() < 0.9]
        tasks, merges, _ = _C.device_split(ints(items, 6), 4, 4)
        most_tasks, most_merges = plan.most(rows)
        assert len(tasks) <= most_tasks <= plan.most(64)[0] and len(merges) <= most_merges <= plan.most(64)[1]
    assert plan.most(1)[0] <= 3 + 4 * 4 and plan.most(1)[1] <= 3 < plan.most(64)[1]


def test_a_plan_that_is_not_set_does_not_run(emulated: None) -> None:
    batch = Batch((Chunk(1, 20),), 1, 1, 64, torch.bfloat16, "plain")
    with pytest.raises(ValueError, match="not set to a step yet"):
        _C.attention(device_plan(batch, 1, 1, 9), 1, batch.q, torch.empty_like(batch.q), 0.1)


def test_heads_that_the_kernels_do_not_take_are_refused(emulated: None) -> None:
    batch = Batch((Chunk(1, 20),), 1, 1, 264, torch.bfloat16, "plain")
    with pytest.raises(ValueError, match="at most 256 on a device"):
        batch.run()
    with pytest.raises(ValueError, match="at most 256 on a device"):
        device_plan(batch, 1, 1, 9)


def test_slots_beyond_the_pool_are_left_alone_on_a_device(device: str) -> None:
    pool = Pool(1, 3, 64, torch.bfloat16, "plain")
    before, slots = pool.memory.clone(), torch.tensor([[3 * PAGE_TOKENS], [2**31 - 1], [-1]], dtype=torch.int32)
    k = torch.randn(3, 64).bfloat16()
    if device == "cuda":  # on the CPU the same is refused
        _C.kv_store(pool.pool, 0, k, k, slots)
    else:
        with pytest.raises(ValueError, match="slots"):
            _C.kv_store(pool.pool, 0, k, k, slots)
    assert same_bits(pool.memory, before)


def test_pools_on_the_cpu_have_no_device_plan() -> None:
    batch = Batch((Chunk(1, 20),), 1, 1, 64, torch.float32)
    with pytest.raises(ValueError, match="AttentionPlan"):
        _C.DeviceAttentionPlan(batch.pool.pool, 1, 1, 1, 1, 9, torch.empty(9, dtype=torch.uint8), torch.empty(9, dtype=torch.uint8))


# ------------------------------------------------------------------------------------------------------- how a step is cut


def random_items(rng: random.Random) -> list[tuple[int, ...]]:
    items = []
    for _ in range(rng.randrange(1, 60)):
        rows = rng.choice([1, 1, 1, 1, 3, 16, 64, 200])
        items.append((0, rows, 0, 0, rows + rng.choice([0, 1, 15, 63, 64, 400, 5000, 40_000]), 0))
    return items


@pytest.mark.parametrize("seed", range(40))
def test_every_row_and_token_is_in_one_task(seed: int) -> None:
    rng = random.Random(seed)
    items, group, blocks = random_items(rng), rng.choice([1, 4, 7, 8, 64, 71]), rng.choice([1, 4, 264])
    tasks, merges, partials = _C.device_split(ints(items, 6), group, blocks)
    seen: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for q_row, rows, item, heads, first_length, begin, end, partial, _ in tasks:
        _, n_rows, _, _, length, _ = items[item]
        assert heads == 1 and rows * group <= max(TILE_VECTORS, group) and begin % CHUNK_TOKENS == 0 and begin < end
        assert first_length == length - n_rows + 1 + q_row
        for row in range(q_row, q_row + rows):
            seen.setdefault((item, row), []).append((begin, min(end, first_length + row - q_row), partial))
    for item, (_, n_rows, _, _, length, _) in enumerate(items):
        for row in range(n_rows):
            pieces = sorted(seen.pop((item, row)))
            tokens = [token for begin, end, _ in pieces for token in range(begin, end)]
            assert tokens == list(range(length - n_rows + 1 + row))
            assert [piece[2] for piece in pieces] == [-1] or all(piece[2] >= 0 for piece in pieces)
    assert not seen
    most_tasks, most_merges, most_partials = _C.device_capacity(len(items), sum(item[1] for item in items), group, blocks)
    assert len(tasks) <= most_tasks and len(merges) <= most_merges and partials <= most_partials
    used = sorted((partial, rows * group) for _, rows, _, _, _, _, _, partial, _ in tasks if partial >= 0)
    assert sum(size for _, size in used) == partials and all(a + size == b for (a, size), (b, _) in itertools.pairwise(used))


def test_few_long_sequences_fill_the_device_and_many_short_ones_stay_whole() -> None:
    blocks = 264
    for items, least in (([(0, 1, 0, 0, 32_768, 0)] * 8, blocks), ([(0, 1, 0, 0, 131_072, 0)], blocks)):
        tasks, merges, _ = _C.device_split(ints(items, 6), 8, blocks)
        lengths = [end - begin for *_, begin, end, _, _ in tasks]
        assert len(tasks) >= least and len(merges) == len(items)
        assert lengths == sorted(lengths, reverse=True) and min(lengths[: len(lengths) // 2]) >= LEAST_PIECE
    tasks, merges, partials = _C.device_split(ints([(0, 1, 0, 0, 512, 0)] * 2048, 6), 8, blocks)
    assert len(tasks) == 2048 and not merges and partials == 0


def test_pages_of_sixteen_tokens_are_whole_products() -> None:
    assert CHUNK_TOKENS % PAGE_TOKENS == 0


# ------------------------------------------------------------------------------------------------------- memory that is elsewhere


def test_cuda_pages_go_to_and_from_pinned_memory() -> None:
    """Rows and whole pools, in either order of the page, without a copy between."""
    need_gpu()
    ids = torch.tensor([4, 0, 2], dtype=torch.int32, device="cuda")
    memory = torch.randn(2, 5, 2, PAGE_TOKENS * 64).bfloat16().cuda()
    pool = _C.KvPool(memory, 2, 5, PAGE_TOKENS, 64, "bfloat16", "plain")
    rows = torch.zeros(3, 2, 2, PAGE_TOKENS, 64, dtype=torch.bfloat16, pin_memory=True)
    _C.page_gather(pool, ids, 0, 2, rows)
    torch.cuda.synchronize()
    assert same_bits(rows.view(3, 2, -1), memory[:, ids.long()].transpose(0, 1).reshape(3, 2, -1).cpu())
    for layout in ("plain", "packed"):
        there, back = torch.zeros(memory.shape, dtype=torch.bfloat16, pin_memory=True), torch.zeros_like(memory)
        host, other = (_C.KvPool(one, 2, 5, PAGE_TOKENS, 64, "bfloat16", kind) for one, kind in ((there, layout), (back, "plain")))
        _C.page_copy(pool, ids, host, ids, 0, 2)
        _C.page_copy(host, ids, other, ids, 0, 2)
        torch.cuda.synchronize()
        assert same_bits(back[:, ids.long()].cpu(), memory[:, ids.long()].cpu())
    fresh = torch.zeros_like(memory)
    _C.page_scatter(_C.KvPool(fresh, 2, 5, PAGE_TOKENS, 64, "bfloat16", "plain"), ids, 0, 2, rows)
    torch.cuda.synchronize()
    assert same_bits(fresh[:, ids.long()].cpu(), memory[:, ids.long()].cpu())


def test_cuda_memory_that_a_gpu_does_not_reach_is_refused() -> None:
    need_gpu()
    memory = torch.zeros(5 * 2 * PAGE_TOKENS * 64, dtype=torch.bfloat16)
    pool, host = (_C.KvPool(one, 1, 5, PAGE_TOKENS, 64, "bfloat16", "plain") for one in (memory.cuda(), memory))
    ids = torch.zeros(1, dtype=torch.int32, device="cuda")
    with pytest.raises(ValueError, match="dst_pool: is neither on the call's device"):
        _C.page_copy(pool, ids, host, ids, 0, 1)
    with pytest.raises(ValueError, match="out: is neither"):
        _C.page_gather(pool, ids, 0, 1, torch.zeros(1, 1, 2, PAGE_TOKENS, 64, dtype=torch.bfloat16))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_cuda_pages_go_from_one_gpu_to_another() -> None:
    if not torch.cuda.can_device_access_peer(0, 1):
        pytest.skip("no path between the two")
    memory = torch.randn(5, 2, PAGE_TOKENS * 64).bfloat16().to("cuda:0")
    there = torch.zeros_like(memory, device="cuda:1")
    pools = [_C.KvPool(one, 1, 5, PAGE_TOKENS, 64, "bfloat16", "plain") for one in (memory, there)]
    ids = torch.arange(5, dtype=torch.int32, device="cuda:0")
    _C.page_copy(pools[0], ids, pools[1], ids, 0, 1)
    torch.cuda.synchronize(0)
    assert same_bits(there.cpu(), memory.cpu())
