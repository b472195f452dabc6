"""Attention of one layer with the real kernels, out of a cache gone cold: before each run, twice the last-level cache is read from elsewhere.

In a running engine the same happens by itself: between two uses of a layer's KV lie all other layers' weights and KV.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from hetserve import _C
from hetserve.engine.attention import ITEM_FIELDS
from hetserve.profile.rounds import Measure, interleaved, own_clock
from hetserve.profile.tasks import AttentionPoint, ChunkPoint, DeviceTask
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.plan import PAGE_TOKENS

Ints = NDArray[np.int32]

PROMPT_SHARE = 0.8  # of a request's pages lie in one run, as a prompt's do; the rest between those of others, as decoding is granted them
SHORTEST_TOKENS = 16  # mean length of a request where the batch is largest and the cache smallest


class AttentionBench:
    """Points of one device. Holds one layer's KV, as large as the device's budget would let it become.

    Args:
        flush_bytes: how much is read between runs to empty the caches.
    """

    def __init__(self, task: DeviceTask, flush_bytes: int) -> None:
        self.task, self.model = task, task.model
        token_bytes = 2 * self.model.kv_dim * DTYPE_BYTES[task.dtype]
        layer_bytes = min(task.memory_bytes // self.model.layers, task.effort.most_bytes)
        self.least_tokens = SHORTEST_TOKENS * task.effort.most_requests
        self.most_tokens = max(layer_bytes // token_bytes, 4 * self.least_tokens)
        held = max(self.most_tokens, max(length for _, length in task.effort.chunks))
        pages = self.model.kv_heads * (held // PAGE_TOKENS + task.effort.most_requests + 1)  # every request's last page may be half empty
        self._pool = layer_pool(pages, self.model.head_dim, task.dtype)
        self._other = torch.ones(flush_bytes // 4)

    def decode(self, tick: Callable[[], None]) -> tuple[AttentionPoint, ...]:
        """The grid, batch by batch: requests of unlike lengths, each with all its heads."""
        grid = self.task.effort.grid
        batches = [round(value) for value in np.geomspace(1, self.task.effort.most_requests, grid)]
        amounts = [round(value) for value in np.geomspace(self.least_tokens, self.most_tokens, grid)]
        lengths = [_lengths(requests, tokens) for requests in batches for tokens in amounts]
        seconds = interleaved([self._measure(one, np.ones(len(one), np.int32)) for one in lengths], self.task.effort.rounds, tick)
        model = self.model
        return tuple(
            AttentionPoint(len(one) * model.q_heads, 2 * model.kv_heads * int(one.sum()), took_s)
            for one, took_s in zip(lengths, seconds, strict=True)
        )

    def prefill(self, tick: Callable[[], None]) -> tuple[ChunkPoint, ...]:
        """One request's chunk of so many rows, the last of which sees so many tokens."""
        chunks = self.task.effort.chunks
        points = [self._measure(np.array([length], np.int32), np.array([rows], np.int32)) for rows, length in chunks]
        seconds = interleaved(points, self.task.effort.rounds, tick)
        return tuple(ChunkPoint(chunk_pairs(rows, length), took_s) for (rows, length), took_s in zip(chunks, seconds, strict=True))

    def _measure(self, lengths: Ints, counts: Ints) -> Measure:
        """Stores and attends counts[i] new tokens of requests that then have lengths[i] tokens."""
        attend, qkv = attention_pass(self._pool, self.model, self.task.dtype, lengths, counts)
        clock = own_clock(self.task.cores)

        def run() -> float:
            self._other.sum()
            for fresh in qkv:  # in a step they have just been computed
                fresh.sum()
            began_s = clock()
            attend(0)
            return clock() - began_s

        return run


def attention_pass(
    pool: _C.KvPool, model: ModelSpec, dtype: str, lengths: Ints, counts: Ints
) -> tuple[Callable[[int], None], tuple[torch.Tensor, ...]]:
    """What stores and attends, in a layer, counts[i] new tokens of requests that then have lengths[i] tokens; and their q, k and v."""
    rows = int(counts.sum())
    table, pages_each = page_table(lengths, model.kv_heads)
    items = np.zeros((len(lengths), model.kv_heads, ITEM_FIELDS), np.int32)
    items[:, :, 0] = (np.cumsum(counts) - counts)[:, None]
    items[:, :, 1] = counts[:, None]
    items[:, :, 2] = np.arange(model.kv_heads)
    items[:, :, 3] = np.arange(len(lengths) * model.kv_heads).reshape(len(lengths), -1) * pages_each
    items[:, :, 4] = lengths[:, None]
    plan = _C.AttentionPlan(pool, torch.from_numpy(items.reshape(-1, ITEM_FIELDS)), table.reshape(-1), rows, model.q_heads, model.group)
    slots = torch.from_numpy(_store_slots(table, lengths, counts, model.kv_heads))
    q, out = (torch.randn(rows, model.q_dim).to(getattr(torch, dtype)) for _ in range(2))
    k, v = (torch.randn(rows, model.kv_dim).to(getattr(torch, dtype)) for _ in range(2))

    def attend(layer: int) -> None:
        _C.kv_store(pool, layer, k, v, slots)
        _C.attention(plan, layer, q, out, model.attention_scale, model.window(layer))

    return attend, (q, k, v)


def layer_pool(pages: int, head_dim: int, dtype: str, layers: int = 1) -> _C.KvPool:
    """Pages of so many layers, every one touched, in huge pages where the system gives them: as a worker has them."""
    storage = torch.empty(_C.KvPool.bytes(layers, pages, PAGE_TOKENS, head_dim, dtype), dtype=torch.uint8)
    _C.advise_huge(storage)
    return _C.KvPool(storage.zero_(), layers, pages, PAGE_TOKENS, head_dim, dtype, "packed")


def chunk_pairs(rows: int, length: int) -> int:
    """How many (token, token it sees) pairs the last `rows` of `length` tokens make."""
    return rows * length - rows * (rows - 1) // 2


def page_table(lengths: Ints, kv_heads: int) -> tuple[Ints, int]:
    """Pages of every request and head: int32 [requests * kv_heads, most pages], and how many the longest has. The fill of short rows is page 0."""
    counts = np.repeat(-(-lengths // PAGE_TOKENS), kv_heads)
    runs = (counts * PROMPT_SHARE).astype(np.int64)
    table = np.zeros((len(counts), int(counts.max())), np.int32)
    first = np.cumsum(runs) - runs
    following = int(runs.sum())
    for index in range(table.shape[1]):
        prompt, late = index < runs, (index >= runs) & (index < counts)
        table[prompt, index] = first[prompt] + index
        table[late, index] = following + np.arange(int(late.sum()))
        following += int(late.sum())
    return table, table.shape[1]


def _lengths(requests: int, tokens: int) -> Ints:
    """Lengths from half the mean to half as much again, `tokens` together."""
    shares = np.linspace(0.5, 1.5, requests) if requests > 1 else np.ones(1)
    return np.maximum(shares * tokens / shares.sum(), 1).astype(np.int32)


def _store_slots(table: Ints, lengths: Ints, counts: Ints, kv_heads: int) -> Ints:
    """Where the new tokens go: int32 [rows, kv_heads]."""
    requests = np.repeat(np.arange(len(lengths)), counts)
    positions = np.concatenate([np.arange(length - count, length) for length, count in zip(lengths, counts, strict=True)])
    pages = table.reshape(len(lengths), kv_heads, -1)[requests, :, positions // PAGE_TOKENS]
    return np.asarray(pages * PAGE_TOKENS + (positions % PAGE_TOKENS)[:, None], np.int32)
