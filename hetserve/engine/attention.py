"""Attention of one step on one device: builds the items once, then stores and attends layer by layer through `_C`.

This is the seam where head dispatch enters later: the model only knows `attend(layer, q, k, v) -> out`.
"""

from __future__ import annotations

import numpy as np
import torch

from hetserve import _C
from hetserve.control.messages import Int32s
from hetserve.spec.model import ModelSpec

ITEM_FIELDS = 6  # q_row, n_rows, head_group, page_begin, length, reserved


class KvMemory:
    """The KV pages of one pool on this device, and the memory they lie in.

    Args:
        layers, pages, page_tokens, head_dim: shape of the pool (see `_C.KvPool`).
        dtype: "float32" or "bfloat16".
    """

    def __init__(self, layers: int, pages: int, page_tokens: int, head_dim: int, dtype: str) -> None:
        size_bytes = _C.KvPool.bytes(layers, pages, page_tokens, head_dim, dtype)
        self.storage = torch.empty(size_bytes, dtype=torch.uint8)
        _C.advise_huge(self.storage)
        self.storage.zero_()  # touched now: a missing page of memory would otherwise be found, and paid for, in the middle of a step
        self.pool = _C.KvPool(self.storage, layers, pages, page_tokens, head_dim, dtype, "packed")
        self.page_tokens = page_tokens
        self.size_bytes = size_bytes


def step_items(slots: Int32s, counts: Int32s, lengths: Int32s, first_rows: Int32s, kv_heads: int, max_pages: int) -> Int32s:
    """Items of a step in which slot i takes counts[i] tokens and then has lengths[i] tokens of context.

    Returns: int32 [slots * kv_heads, 6]; page_begin points into the page table [slots, kv_heads, max_pages], flattened.
    """
    items = np.zeros((len(slots), kv_heads, ITEM_FIELDS), np.int32)
    heads = np.arange(kv_heads, dtype=np.int32)
    items[:, :, 0] = first_rows[:, None]
    items[:, :, 1] = counts[:, None]
    items[:, :, 2] = heads
    items[:, :, 3] = (slots[:, None] * kv_heads + heads) * max_pages
    items[:, :, 4] = lengths[:, None]
    return items.reshape(-1, ITEM_FIELDS)


class LocalAttention:
    """One step's attention with every head group on this device.

    Args:
        memory: the pool that holds the KV.
        spec: the model, for its heads, scale and windows.
        items: int32 [n, 6] (`step_items`).
        page_table: int32 [slots * kv_heads * max_pages], the worker's whole table.
        store_slots: int32 [rows, kv_heads], page id * page_tokens + offset of every new token and head group.
    """

    def __init__(self, memory: KvMemory, spec: ModelSpec, items: Int32s, page_table: torch.Tensor, store_slots: torch.Tensor) -> None:
        self._pool = memory.pool
        self._spec = spec
        self._store_slots = store_slots
        self._plan = _C.AttentionPlan(memory.pool, torch.from_numpy(items), page_table, store_slots.shape[0], spec.q_heads, spec.group)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Stores k and v, then attends. q: [rows, q_heads * head_dim]; k, v: [rows, kv_heads * head_dim]; returns like q."""
        _C.kv_store(self._pool, layer, k, v, self._store_slots)
        out = torch.empty(q.shape, dtype=q.dtype)
        _C.attention(self._plan, layer, q, out, self._spec.attention_scale, self._spec.window(layer))
        return out
