"""Attention of steps on a GPU: one plan in device memory for one pool, set anew for each step, so that a captured graph serves any of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hetserve import _C
from hetserve.control.messages import Int32s
from hetserve.engine.attention import Attending, KvMemory, LocalAttention
from hetserve.engine.sequences import Sequences
from hetserve.spec.model import ModelSpec

LEAST = 256  # items, rows and pages that a plan has room for, at least


class DeviceAttention:
    """`Attending` over one pool on a GPU, step after step. Room grows where a step needs more, or is fixed from the start.

    Args:
        memory: the pool.
        spec: the model, for its heads, scale and windows.
        groups: head groups of a row of q: all of the model's on a primary, one on an attention worker.
        fixed: (rows, pages) that no step exceeds, so that nothing is ever allocated again; None: grows.
    """

    def __init__(self, memory: KvMemory, spec: ModelSpec, groups: int, fixed: tuple[int, int] | None = None) -> None:
        self._memory = memory
        self._spec = spec
        self._groups = groups
        self._scale = spec.attention_scale
        self._fixed = fixed is not None
        self._room = (0, 0, 0)
        self._sent = memory.at.mark()
        rows, pages = fixed or (LEAST, LEAST)
        self._make_room(rows * groups, rows * groups, pages)
        self.slots = torch.full((rows, groups), -1, dtype=torch.int32, device=memory.at.device)

    def begin(self, items: Int32s, page_table: Int32s, store_slots: Int32s) -> DeviceAttention:
        """Sets it to a step, and returns it.

        Args:
            items: int32 [n, 6] (see `_C.AttentionPlan`); their page_begin points into page_table.
            page_table: int32, the worker's whole table; what the items need of it is sent.
            store_slots: int32 [rows, groups] page id * page_tokens + offset of every new token, -1: not here.
        """
        items, page_ids = compact(items, page_table, self._memory.page_tokens)
        rows = store_slots.shape[0]
        needed = (len(items), int(items[:, 1].sum()), len(page_ids))
        if any(need > room for need, room in zip(needed, self._room, strict=True)):
            assert not self._fixed, f"a step of {needed} items, rows and pages where {self._room} was the most"
            self._make_room(*(2 * need if need > room else room for need, room in zip(needed, self._room, strict=True)))
        if rows > self.slots.shape[0]:
            assert not self._fixed
            self.slots = torch.empty((2 * rows, self._groups), dtype=torch.int32, device=self._memory.at.device)
        self._sent.wait()  # the step before has long been read from the staging memory; after an error it may not have been
        self.slots[:rows].copy_(torch.from_numpy(store_slots))
        if self._fixed:
            self.slots[rows:].fill_(-1)
        self._plan.set(items, page_ids, rows)
        self._sent = self._memory.at.mark()
        return self

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """As `Attending`; may have more rows than the step, which are neither stored nor attended to where the room is fixed."""
        own_layer = layer - self._memory.first_layer
        _C.kv_store(self._memory.pool, own_layer, k, v, self.slots[: k.shape[0]])
        _C.attention(self._plan, own_layer, q, out, self._scale, self._spec.window(layer))

    def _make_room(self, items: int, rows: int, pages: int) -> None:
        self._sent.wait()
        at, group = self._memory.at, self._spec.group
        device_bytes, host_bytes = _C.DeviceAttentionPlan.bytes(self._memory.pool, group, items, rows, pages)
        memory = torch.empty(device_bytes, dtype=torch.uint8, device=at.device)
        staging = at.host(host_bytes, dtype=torch.uint8)
        heads = self._groups * group
        self._plan = _C.DeviceAttentionPlan(self._memory.pool, heads, group, items, rows, pages, memory, staging)
        self._room = (items, rows, pages)


def compact(items: Int32s, page_table: Int32s, page_tokens: int) -> tuple[Int32s, Int32s]:
    """The items with their pages one after the other, and those pages' ids."""
    counts = -(-items[:, 4] // page_tokens)
    begins = np.cumsum(counts, dtype=np.int32) - counts
    page_ids = page_table[np.repeat(items[:, 3] - begins, counts) + np.arange(counts.sum(), dtype=np.int64)]
    moved = items.copy()
    moved[:, 3] = begins
    return moved, page_ids


def attention_of(memory: KvMemory, spec: ModelSpec, groups: int) -> Callable[[Int32s, Sequences, Int32s], Attending]:
    """Makes the `Attending` of a step over a pool, on whichever device that is: from items, whose sequences they are of, and store slots.

    Args:
        groups: head groups of a row of q.
    """
    if not memory.at.is_gpu:
        return lambda items, seqs, slots: LocalAttention(memory, spec, items, seqs.page_table, slots)
    attention = DeviceAttention(memory, spec, groups)
    return lambda items, seqs, slots: attention.begin(items, seqs.page_table.numpy(), slots)
