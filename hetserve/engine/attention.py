"""Attention of one step on one device: builds the items once, then stores and attends layer by layer through `_C`. GPUs: `device_attention.py`."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from hetserve import _C
from hetserve.control.messages import Int32s
from hetserve.engine.accelerator import Accelerator
from hetserve.engine.sequences import Rows, Sequences
from hetserve.spec.model import ModelSpec

ITEM_FIELDS = 6  # q_row, n_rows, head_group, page_begin, length, reserved
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class KvMemory:
    """The KV pages of one pool on this device, and the memory they lie in.

    Args:
        layers: (first, last) of the model, whose KV is here.
        pages, page_tokens, head_dim: shape of the pool (see `_C.KvPool`).
        dtype: "float32" or "bfloat16".
        at: the device.
    """

    def __init__(self, layers: tuple[int, int], pages: int, page_tokens: int, head_dim: int, dtype: str, at: Accelerator) -> None:
        count = layers[1] - layers[0]
        size_bytes = _C.KvPool.bytes(count, pages, page_tokens, head_dim, dtype)
        self.storage = torch.empty(size_bytes, dtype=torch.uint8, device=at.device)
        if self.storage.device.type == "cpu":
            _C.advise_huge(self.storage)
        self.storage.zero_()  # touched now: a missing page of memory would otherwise be found, and paid for, in the middle of a step
        self.pool = _C.KvPool(self.storage, count, pages, page_tokens, head_dim, dtype, at.layout)
        self.at = at
        self.page_tokens = page_tokens
        self.rows = self.storage.view(count, pages, -1)  # the same bytes: [layers, pages, a page of one layer]
        self.first_layer = layers[0]
        self.dtype = DTYPES[dtype]
        self.size_bytes = size_bytes


class Attending(Protocol):
    """One step's attention over the head groups that lie in one pool of this device."""

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """Stores k and v, then attends into `out`. q, out: [rows, groups * group * head_dim]; k, v: [rows, groups * head_dim]."""


class LocalAttention:
    """`Attending` on a CPU.

    Args:
        memory: the pool.
        spec: the model, for its heads, scale and windows.
        items: int32 [n, 6] (see `_C.AttentionPlan`); their page_begin points into page_table.
        page_table: int32, the worker's whole table.
        store_slots: int32 [rows, head groups] page id * page_tokens + offset of every new token, -1: not here.
    """

    def __init__(self, memory: KvMemory, spec: ModelSpec, items: Int32s, page_table: torch.Tensor, store_slots: Int32s) -> None:
        self._memory = memory
        self._spec = spec
        self._scale = spec.attention_scale
        self._store_slots = torch.from_numpy(store_slots)
        rows, groups = store_slots.shape
        self._plan = _C.AttentionPlan(memory.pool, torch.from_numpy(items), page_table, rows, groups * spec.group, spec.group)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """As `Attending`."""
        own_layer = layer - self._memory.first_layer
        _C.kv_store(self._memory.pool, own_layer, k, v, self._store_slots)
        _C.attention(self._plan, own_layer, q, out, self._scale, self._spec.window(layer))


def stage_items(seqs: Sequences, rows: Rows, stage: int, pool: int) -> tuple[Int32s, Int32s]:
    """What a stage's primary attends to itself: the items and the store slots of the lanes that lie in its pool.

    Returns: int32 [n, 6] and [rows, kv_heads].
    """
    heads = np.arange(seqs.kv_heads, dtype=np.int32)
    lanes = stage * seqs.kv_heads + heads
    here = seqs.pools[rows.slots][:, lanes] == pool
    items = np.zeros((len(rows.slots), seqs.kv_heads, ITEM_FIELDS), np.int32)
    items[:, :, 0] = rows.first_rows[:, None]
    items[:, :, 1] = rows.counts[:, None]
    items[:, :, 2] = heads
    items[:, :, 3] = (rows.slots[:, None] * seqs.lanes + lanes) * seqs.max_pages
    items[:, :, 4] = rows.lengths[:, None]
    store = seqs.page_slots(rows.row_slots, rows.positions, slice(int(lanes[0]), int(lanes[-1]) + 1))
    return items[here], np.where(np.repeat(here, rows.counts, 0), store, np.int32(-1))


def pool_pairs(seqs: Sequences, rows: Rows, stage: int, pool: int) -> Int32s:
    """int32 [m, 2] the (row, KV head) pairs of a step's decoding rows that lie in an attention worker's pool, row by row.

    Chunks have all their lanes on the stage's primary, always.
    """
    heads = slice(stage * seqs.kv_heads, (stage + 1) * seqs.kv_heads)
    return np.argwhere(seqs.pools[rows.slots[: rows.decodes], heads] == pool).astype(np.int32, order="C")


def pair_items(seqs: Sequences, rows: Rows, stage: int, pairs: Int32s) -> tuple[Int32s, Int32s]:
    """What an attention worker attends to for `pairs`, each a row of one head group of its own.

    Returns: int32 [m, 6] and [m, 1], as `stage_items`.
    """
    row, lane = pairs[:, 0], stage * seqs.kv_heads + pairs[:, 1]
    slots = rows.slots[row]
    items = np.zeros((len(pairs), ITEM_FIELDS), np.int32)
    items[:, 0] = np.arange(len(pairs), dtype=np.int32)
    items[:, 1] = 1
    items[:, 3] = (slots * seqs.lanes + lane) * seqs.max_pages
    items[:, 4] = rows.lengths[row]
    return items, seqs.page_slots(slots, rows.positions[row], lane)[:, None]
