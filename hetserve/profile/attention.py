"""Attention of one layer with the real kernels, out of a cache gone cold: before each run, twice the last-level cache is read from elsewhere.

In a running engine the same happens by itself: between two uses of a layer's KV lie all other layers' weights and KV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from hetserve.engine.accelerator import Run
from hetserve.engine.attention import ITEM_FIELDS, Attending, KvMemory, LocalAttention
from hetserve.engine.device_attention import DeviceAttention
from hetserve.profile.rounds import Measure, interleaved
from hetserve.profile.site import Site
from hetserve.profile.tasks import AttentionPoint, ChunkPoint, DeviceTask
from hetserve.spec.model import DTYPE_BYTES, ModelSpec
from hetserve.spec.plan import PAGE_TOKENS

Ints = NDArray[np.int32]

PROMPT_SHARE = 0.8  # of a request's pages lie in one run, as a prompt's do; the rest between those of others, as decoding is granted them
SHORTEST_TOKENS = 16  # mean length of a request where the batch is largest and the cache smallest


class AttentionBench:
    """Points of one device. Holds one layer's KV, as large as the device's budget would let it become."""

    def __init__(self, task: DeviceTask, site: Site) -> None:
        self.task, self.model, self._site = task, task.model, site
        token_bytes = 2 * self.model.kv_dim * DTYPE_BYTES[task.dtype]
        layer_bytes = min(task.device.memory_bytes // self.model.layers, task.effort.most_bytes)
        self.least_tokens = SHORTEST_TOKENS * task.effort.most_requests
        self.most_tokens = max(layer_bytes // token_bytes, 4 * self.least_tokens)
        held = max(self.most_tokens, max(length for _, length in task.effort.chunks))
        pages = self.model.kv_heads * (held // PAGE_TOKENS + task.effort.most_requests + 1)  # every request's last page may be half empty
        self._memory = KvMemory((0, 1), pages, PAGE_TOKENS, self.model.head_dim, task.dtype, site.at)
        self._other = torch.ones(site.flush_bytes // 4, device=site.device)

    def decode(self, tick: Callable[[], None]) -> tuple[AttentionPoint, ...]:
        """The grid, batch by batch: requests of unlike lengths, each with all its heads. On a GPU captured, as a worker's decode steps are."""
        grid, model = self.task.effort.grid, self.model
        batches = [round(value) for value in np.geomspace(1, self.task.effort.most_requests, grid)]
        amounts = [round(value) for value in np.geomspace(self.least_tokens, self.most_tokens, grid)]
        lengths = [_lengths(requests, tokens) for requests in batches for tokens in amounts]
        ready = passes(self._site, self._memory, model, [Step(model, one, np.ones(len(one), np.int32)) for one in lengths], True)
        seconds = interleaved([self._measure(one, one.captured(0)) for one in ready], self.task.effort.rounds, tick)
        return tuple(
            AttentionPoint(len(one) * model.q_heads, 2 * model.kv_heads * int(one.sum()), took_s)
            for one, took_s in zip(lengths, seconds, strict=True)
        )

    def prefill(self, tick: Callable[[], None]) -> tuple[ChunkPoint, ...]:
        """One request's chunk of so many rows, the last of which sees so many tokens."""
        chunks = self.task.effort.chunks
        steps = [Step(self.model, np.array([length], np.int32), np.array([rows], np.int32)) for rows, length in chunks]
        ready = passes(self._site, self._memory, self.model, steps, False)
        seconds = interleaved([self._measure(one, partial(one.attend, 0)) for one in ready], self.task.effort.rounds, tick)
        return tuple(ChunkPoint(chunk_pairs(rows, length), took_s) for (rows, length), took_s in zip(chunks, seconds, strict=True))

    def _measure(self, step: Pass, attend: Run) -> Measure:
        def run() -> float:
            step.begin()
            self._other.sum()
            for fresh in step.fresh:  # in a step they have just been computed
                fresh.sum()
            return self._site.timed(attend)

        return run


class Step:
    """counts[i] new tokens of requests that then have lengths[i] tokens: items and page ids as `_C.AttentionPlan` wants them, store slots."""

    def __init__(self, model: ModelSpec, lengths: Ints, counts: Ints) -> None:
        table, pages_each = page_table(lengths, model.kv_heads)
        items = np.zeros((len(lengths), model.kv_heads, ITEM_FIELDS), np.int32)
        items[:, :, 0] = (np.cumsum(counts) - counts)[:, None]
        items[:, :, 1] = counts[:, None]
        items[:, :, 2] = np.arange(model.kv_heads)
        items[:, :, 3] = np.arange(len(lengths) * model.kv_heads).reshape(len(lengths), -1) * pages_each
        items[:, :, 4] = lengths[:, None]
        self.items = items.reshape(-1, ITEM_FIELDS)
        self.page_ids = table.reshape(-1)
        self.slots = _store_slots(table, lengths, counts, model.kv_heads)
        self.rows = int(counts.sum())


class Pass:
    """One step on a pool, with its q, k and v.

    Args:
        shared: what attends on a GPU, to one step at a time; None: this is a CPU.
    """

    def __init__(self, site: Site, memory: KvMemory, model: ModelSpec, step: Step, shared: DeviceAttention | None) -> None:
        self._site, self._step, self._shared = site, step, shared
        self._attending: Attending = shared or LocalAttention(memory, model, step.items, torch.from_numpy(step.page_ids), step.slots)
        self._q, self.out = (site.random(step.rows, model.q_dim, dtype=memory.dtype) for _ in range(2))
        self._k, self._v = (site.random(step.rows, model.kv_dim, dtype=memory.dtype) for _ in range(2))
        self.fresh = (self._q, self._k, self._v)

    def begin(self) -> None:
        """What a worker on a GPU does once a step."""
        if self._shared is not None:
            self._shared.begin(self._step.items, self._step.page_ids, self._step.slots)

    def attend(self, layer: int) -> None:
        """Stores and attends in a layer, after `begin`."""
        self._attending(layer, self._q, self._k, self._v, self.out)

    def captured(self, layer: int) -> Run:
        """`attend` as in a decode step; also after `begin`."""
        self.begin()
        return self._site.launched(partial(self.attend, layer), self._step.rows)


def passes(site: Site, memory: KvMemory, model: ModelSpec, steps: Sequence[Step], decode: bool) -> list[Pass]:
    """The steps on a pool. On a GPU they share a plan, as a worker's do: decode steps one of fixed size, others one that grows."""
    shared = None
    if site.at.is_gpu:
        most = (max(step.rows for step in steps), max(len(step.page_ids) for step in steps))
        shared = DeviceAttention(memory, model, model.kv_heads, most if decode else None)
    return [Pass(site, memory, model, step, shared) for step in steps]


def chunk_pairs(rows: int, length: int) -> int:
    """How many (token, token it sees) pairs the last `rows` of `length` tokens make."""
    return rows * length - rows * (rows - 1) // 2


def page_table(lengths: Ints, kv_heads: int) -> tuple[Ints, int]:
    """Pages of every request and head: int32 [requests * kv_heads, most pages], and how many the longest has. The fill of short rows is page 0."""
    counts = np.repeat(-(-lengths // PAGE_TOKENS), kv_heads)
    runs = (counts * PROMPT_SHARE).astype(np.int64)
    first, page = np.cumsum(runs) - runs, np.arange(int(counts.max()))
    prompt = page < runs[:, None]
    late = ~prompt & (page < counts[:, None])
    table = np.where(prompt, first[:, None] + page, 0).astype(np.int32)
    table.T[late.T] = int(runs.sum()) + np.arange(int(late.sum()))  # a page of each in turn
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
