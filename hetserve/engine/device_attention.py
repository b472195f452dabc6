"""Attention of steps on a GPU: one plan in device memory for one pool, set anew for each step, so that a captured graph serves any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hetserve import _C
from hetserve.control.messages import Int32s
from hetserve.engine.attention import Attending, KvMemory, LocalAttention
from hetserve.engine.sequences import Sequences
from hetserve.spec.model import ModelSpec

LEAST = 256  # items, rows and pages that a plan has room for, at least


class DeviceAttention:
    """`Attending` over one pool on a GPU, step after step. Room grows where a step needs more, or is fixed from the start.

    Whatever a step needs goes there in one copy, from one of two pieces of pinned memory in turn, so that a step can be prepared while the one before
    it is still being read.

    Args:
        memory: the pool.
        spec: the model, for its heads, scale and windows.
        groups: head groups of a row of q: all of the model's on a primary, one on an attention worker.
        fixed: (rows, pages) that no step exceeds, so that nothing is ever allocated again; None: grows.
        inputs: int32 numbers of each row that are sent along.
    """

    def __init__(self, memory: KvMemory, spec: ModelSpec, groups: int, fixed: tuple[int, int] | None = None, inputs: int = 0) -> None:
        self._memory = memory
        self._spec = spec
        self._groups = groups
        self._scale = spec.attention_scale
        self._fixed = fixed is not None
        self._count = inputs
        self._sent = [memory.at.mark(soon=True), memory.at.mark(soon=True)]  # of the halves of the pinned memory
        rows, pages = fixed or (LEAST, LEAST)
        self._make_room((rows * groups, rows * groups, pages, rows))

    def begin(self, items: Int32s, page_table: Int32s, store_slots: Int32s, inputs: Sequence[Int32s] = ()) -> DeviceAttention:
        """Sets it to a step, and returns it.

        Args:
            items: int32 [n, 6] (see `_C.AttentionPlan`); their page_begin point into page_table.
            page_table: int32, the worker's whole table; what the items need of it is sent.
            store_slots: int32 [rows, groups] page id * page_tokens + offset of every new token, -1: not here.
            inputs: [rows] each, to be found in `inputs`; rows beyond keep what was there.
        """
        rows = store_slots.shape[0]
        if not self._fixed:
            pages = -(-items[:, 4] // self._memory.page_tokens)
            needed = (len(items), int(items[:, 1].sum()), int(pages.sum()), rows)
            if any(need > room for need, room in zip(needed, self._room, strict=True)):
                self._make_room(tuple(2 * need if need > room else room for need, room in zip(needed, self._room, strict=True)))
        half = self._plan.half
        self._sent[half].wait()  # the step before the last has long been read; after an error it may not have been
        slots, numbers = self._halves[half]
        slots[:rows] = store_slots
        if self._fixed:
            slots[rows:] = -1
        for to, given in zip(numbers, inputs, strict=True):
            to[:rows] = given
        self._plan.set(items, page_table, rows)
        self._sent[half] = self._memory.at.mark(soon=True)
        return self

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
        """As `Attending`; may have more rows than the step, which are neither stored nor attended to where the room is fixed."""
        own_layer = layer - self._memory.first_layer
        _C.kv_store(self._memory.pool, own_layer, k, v, self.slots[: k.shape[0]])
        _C.attention(self._plan, own_layer, q, out, self._scale, self._spec.window(layer))

    def _make_room(self, room: tuple[int, ...]) -> None:
        """For (items, rows of all items, pages, rows)."""
        for sent in self._sent:
            sent.wait()
        items, item_rows, pages, rows = room
        at, group, words = self._memory.at, self._spec.group, rows * (self._groups + self._count)
        device_bytes, host_bytes = _C.DeviceAttentionPlan.bytes(self._memory.pool, group, items, item_rows, pages, words)
        memory = torch.empty(device_bytes, dtype=torch.uint8, device=at.device)
        staging = at.host(host_bytes, dtype=torch.uint8)
        heads = self._groups * group
        self._plan = _C.DeviceAttentionPlan(self._memory.pool, heads, group, items, item_rows, pages, memory, staging, words)
        self._room = room
        there, *here = (self._split(one, rows) for one in (memory, *staging.chunk(2)))
        self.slots, self.inputs = there
        self.slots.fill_(-1)
        self.inputs.zero_()  # rows beyond those of a step are computed too
        self._halves = [tuple(part.numpy() for part in half) for half in here]
        for _, numbers in self._halves:
            numbers[:] = 0

    def _split(self, memory: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The caller's words: int32 [rows, groups] and [inputs, rows]."""
        first = self._plan.first_word
        words = memory[first : first + 4 * rows * (self._groups + self._count)].view(torch.int32)
        return words[: rows * self._groups].view(rows, self._groups), words[rows * self._groups :].view(self._count, rows)


def attention_of(memory: KvMemory, spec: ModelSpec, groups: int) -> Callable[[Int32s, Sequences, Int32s], Attending]:
    """Makes the `Attending` of a step over a pool, on whichever device that is: from items, whose sequences they are of, and store slots.

    Args:
        groups: head groups of a row of q.
    """
    if not memory.at.is_gpu:
        return lambda items, seqs, slots: LocalAttention(memory, spec, items, seqs.page_table, slots)
    attention = DeviceAttention(memory, spec, groups)
    return lambda items, seqs, slots: attention.begin(items, seqs.page_table.numpy(), slots)
