"""Decode steps of a stage on a GPU as captured graphs (DESIGN section 5): one for each number of rows, rounded up, and any placement.

Nothing dispatched: a graph for the whole step. Something dispatched: one for each piece between two attentions; sends, the attention of this device
and what comes back are launched between them. Same model code as eager steps. Rows beyond a step's own are made up: their KV is stored nowhere,
nothing attends for them, and nobody looks at what they come to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hetserve.control.messages import Int32s
from hetserve.engine.accelerator import Accelerator, Run
from hetserve.engine.attention import ITEM_FIELDS, Attending, KvMemory
from hetserve.engine.device_attention import DeviceAttention
from hetserve.engine.heads import DispatchedAttention
from hetserve.engine.last_tokens import LastTokens
from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.decoder import Model
from hetserve.engine.sequences import Rows, Sequences
from hetserve.spec.model import ModelSpec

INPUTS = 3  # of a row: its token, its position, its slot
FEW = (1, 2, 4, 8)  # numbers of rows that have graphs of their own; above, every second power of two and what lies half-way


def buckets(most: int) -> list[int]:
    """The numbers of rows that graphs are captured for, ascending; the last is `most`."""
    found = [rows for rows in FEW if rows < most]
    rows = 16
    while rows < most:
        found += [rows, rows + rows // 2]
        rows *= 2
    return [rows for rows in found if rows < most] + [most]


class DecodeGraphs:
    """One stage's.

    Args:
        model, memory: the stage's layers and its pool.
        max_seqs, max_pages: rows of the largest step, and the pages of a head group of the longest sequence.
        last: where tokens come from that the host does not know.
    """

    def __init__(self, model: Model, spec: ModelSpec, memory: KvMemory, max_seqs: int, max_pages: int, last: LastTokens) -> None:
        self._last = last
        self._model, self._spec, self._dtype = model, spec, memory.dtype
        self._at: Accelerator = memory.at
        self._attention = DeviceAttention(memory, spec, spec.kv_heads, (max_seqs, max_seqs * spec.kv_heads * max_pages), INPUTS)
        self._hidden = None if model.first == 0 else torch.zeros((max_seqs, spec.hidden), dtype=model.dtype, device=self._at.device)
        self._buckets = buckets(max_seqs)
        self._whole: dict[int, Captured] = {}
        self._pieces: dict[int, Captured] = {}

    def begin(self, items: Int32s, seqs: Sequences, store_slots: Int32s, rows: Rows) -> Attending:
        """Puts a step on the device, all but hidden states, and sets the attention to it."""
        tokens = seqs.tokens[rows.row_slots, rows.positions]
        return self._attention.begin(items, seqs.page_table.numpy(), store_slots, (tokens, rows.positions, rows.row_slots))

    @property
    def row_slots(self) -> torch.Tensor:
        """int32, the slots of the rows of the step begun last, on the device."""
        return self._attention.inputs[2]

    def run(self, rows: int, hidden: torch.Tensor | None, attend: DispatchedAttention) -> torch.Tensor:
        """What `Model.forward` returns for the step begun last, in memory that the next one overwrites.

        Args:
            rows: of the step.
            hidden: [rows, hidden] of the stage before, or None.
            attend: the step's, made of `begin`'s.
        """
        with torch.inference_mode():
            return self._run(rows, hidden, attend)

    def _run(self, rows: int, hidden: torch.Tensor | None, attend: DispatchedAttention) -> torch.Tensor:
        bucket = next(one for one in self._buckets if one >= rows)
        if hidden is not None and self._hidden is not None:
            self._hidden[:rows].copy_(hidden)
        return (self._pieces if attend.dispatched else self._whole)[bucket].run(attend)[:rows]

    def _capture(self, rows: int, dispatched: bool) -> None:
        """The graphs of one number of rows."""
        tokens, positions, slots = self._attention.inputs[:, :rows]
        batch = StepBatch(tokens, positions, None)
        hidden = None if self._hidden is None else self._hidden[:rows]
        attention = None if dispatched else self._attention
        made = Captured(self._model, self._spec, self._at, batch, lambda: self._last.fill(tokens, slots), hidden, self._dtype, attention)
        (self._pieces if dispatched else self._whole)[rows] = made

    def capture_all(self, dispatched: bool) -> None:
        """Every number of rows, whole, and in pieces where head groups may lie elsewhere; largest first, so that they share memory.

        Before the first step: once there are steps, another thread lets go of pinned memory, and torch would put an event into a graph for it.
        """
        nobody, page_table, slots = np.zeros((0, ITEM_FIELDS), np.int32), np.zeros(1, np.int32), np.full((1, self._spec.kv_heads), -1, np.int32)
        self._attention.begin(nobody, page_table, slots, [np.zeros(1, np.int32)] * INPUTS)
        with torch.inference_mode():
            for rows in reversed(self._buckets):
                self._capture(rows, False)
                if dispatched:
                    self._capture(rows, True)


class Captured:
    """A decode step of so many rows, as one graph or in pieces.

    Args:
        batch, hidden: its input, in memory that stays.
        fill: the tokens of the batch, with those that only the device knows.
        dtype: of attention.
        attention: the whole step's, to be captured with it; None: in pieces.
    """

    def __init__(
        self,
        model: Model,
        spec: ModelSpec,
        at: Accelerator,
        batch: StepBatch,
        fill: Callable[[], torch.Tensor],
        hidden: torch.Tensor | None,
        dtype: torch.dtype,
        attention: Attending | None,
    ) -> None:
        self._model, self._batch, self._fill, self._dtype = model, batch, fill, dtype
        self._kept = hidden
        self._hidden = None if hidden is None else torch.empty_like(hidden)  # a pass overwrites its input, and made-up rows would grow beyond bounds
        self._attended = torch.zeros((batch.rows, spec.q_dim), dtype=dtype, device=at.device)
        pieces: list[Run] = []
        if attention is not None:
            pieces.append(lambda: self._all(attention))
        else:  # a replay runs no Python: whatever a piece leaves for what is launched between pieces must lie where it lay when it was captured
            keys = torch.zeros((batch.rows, spec.kv_dim), dtype=dtype, device=at.device)
            self._qkv = (torch.zeros_like(self._attended), keys, torch.zeros_like(keys))
            pieces += [self._first, *(self._next(layer) for layer in range(model.first + 1, model.last)), self._last]
        for piece in pieces:
            at.warm_up(piece)
        at.synchronize()
        self._runs = [at.capture(piece) for piece in pieces]

    def run(self, attend: DispatchedAttention) -> torch.Tensor:
        """One step; `attend` is called between pieces."""
        if len(self._runs) == 1:
            self._runs[0]()
            return self._out
        for layer, run in enumerate(self._runs[:-1], self._model.first):
            run()
            attend.into(layer, *self._qkv, self._attended)
        self._runs[-1]()
        return self._out

    def _all(self, attention: Attending) -> None:
        model = self._model
        self._enter()
        for layer in range(model.first, model.last):
            q, k, v = (one.to(self._dtype) for one in model.before(layer, self._stream, self._batch))
            attention(layer, q, k, v, self._attended)
            model.after(layer, self._stream, self._batch, self._attended.to(model.dtype))
        self._out = model.leave(self._stream)

    def _enter(self) -> None:
        batch = self._batch
        if self._hidden is None:
            batch = replace(batch, token_ids=self._fill())
        elif self._kept is not None:
            self._hidden.copy_(self._kept)
        self._stream = self._model.enter(batch, self._hidden)

    def _first(self) -> None:
        self._enter()
        self._project(self._model.first)

    def _next(self, layer: int) -> Callable[[], None]:
        """From the attention of the layer before to the next one's."""

        def run() -> None:
            self._model.after(layer - 1, self._stream, self._batch, self._attended.to(self._model.dtype))
            self._project(layer)

        return run

    def _last(self) -> None:
        self._model.after(self._model.last - 1, self._stream, self._batch, self._attended.to(self._model.dtype))
        self._out = self._model.leave(self._stream)

    def _project(self, layer: int) -> None:
        for kept, new in zip(self._qkv, self._model.before(layer, self._stream, self._batch), strict=True):
            kept.copy_(new)
