"""Decode steps of a stage on a GPU as captured graphs (DESIGN section 5): one for each number of rows, rounded up, and any placement.

Nothing dispatched: a graph for the whole step. Something dispatched: one for each piece between two attentions; sends, the attention of this device
and what comes back are launched between them. Same model code as eager steps. Rows beyond a step's own are made up: their KV is stored nowhere,
nothing attends for them, and nobody looks at what they come to.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from hetserve.control.messages import Int32s
from hetserve.engine.accelerator import Accelerator, Run
from hetserve.engine.attention import Attending, KvMemory
from hetserve.engine.device_attention import DeviceAttention
from hetserve.engine.heads import DispatchedAttention
from hetserve.engine.model.batch import StepBatch
from hetserve.engine.model.decoder import Model
from hetserve.engine.sequences import Sequences
from hetserve.spec.model import ModelSpec

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
    """

    def __init__(self, model: Model, spec: ModelSpec, memory: KvMemory, max_seqs: int, max_pages: int) -> None:
        self._model, self._spec, self._dtype = model, spec, memory.dtype
        self._at: Accelerator = memory.at
        self._attention = DeviceAttention(memory, spec, spec.kv_heads, (max_seqs, max_seqs * spec.kv_heads * max_pages))
        device = self._at.device
        self._tokens = torch.zeros(max_seqs, dtype=torch.int64, device=device)
        self._positions = torch.zeros(max_seqs, dtype=torch.int32, device=device)
        self._hidden = None if model.first == 0 else torch.zeros((max_seqs, spec.hidden), dtype=model.dtype, device=device)
        self._buckets = buckets(max_seqs)
        self._whole: dict[int, Captured] = {}
        self._pieces: dict[int, Captured] = {}

    def begin(self, items: Int32s, seqs: Sequences, store_slots: Int32s) -> Attending:
        """Sets the attention to a step."""
        return self._attention.begin(items, seqs.page_table.numpy(), store_slots)

    def run(self, tokens: Int32s, positions: Int32s, hidden: torch.Tensor | None, attend: DispatchedAttention) -> torch.Tensor:
        """What `Model.forward` returns for one step, in memory that the next one overwrites.

        Args:
            tokens, positions: [rows].
            hidden: [rows, hidden] of the stage before, or None.
            attend: the step's, made of `begin`'s.
        """
        with torch.inference_mode():
            return self._run(tokens, positions, hidden, attend)

    def _run(self, tokens: Int32s, positions: Int32s, hidden: torch.Tensor | None, attend: DispatchedAttention) -> torch.Tensor:
        rows = len(tokens)
        bucket = next(one for one in self._buckets if one >= rows)
        self._tokens[:rows].copy_(torch.from_numpy(tokens.astype(np.int64)))
        self._positions[:rows].copy_(torch.from_numpy(positions))
        if hidden is not None and self._hidden is not None:
            self._hidden[:rows].copy_(hidden)
        captured = (self._pieces if attend.dispatched else self._whole).get(bucket) or self.capture(bucket, attend.dispatched)
        return captured.run(attend)[:rows]

    def capture(self, rows: int, dispatched: bool) -> Captured:
        """The graphs of one number of rows, now; a step that has none captures them by itself."""
        batch = StepBatch(self._tokens[:rows], self._positions[:rows], None)
        hidden = None if self._hidden is None else self._hidden[:rows]
        made = Captured(self._model, self._spec, self._at, batch, hidden, self._dtype, None if dispatched else self._attention)
        (self._pieces if dispatched else self._whole)[rows] = made
        return made

    def capture_all(self, dispatched: bool) -> None:
        """Every number of rows, whole, and in pieces where head groups may lie elsewhere; largest first, so that they share memory."""
        none = np.zeros((0, 6), np.int32)
        self._attention.begin(none, np.zeros(1, np.int32), np.full((1, self._spec.kv_heads), -1, np.int32))  # set to a step in which nobody attends
        with torch.inference_mode():
            for rows in reversed(self._buckets):
                self.capture(rows, False)
                if dispatched:
                    self.capture(rows, True)


class Captured:
    """A decode step of so many rows, as one graph or in pieces.

    Args:
        batch, hidden: its input, in memory that stays.
        dtype: of attention.
        attention: the whole step's, to be captured with it; None: in pieces.
    """

    def __init__(
        self,
        model: Model,
        spec: ModelSpec,
        at: Accelerator,
        batch: StepBatch,
        hidden: torch.Tensor | None,
        dtype: torch.dtype,
        attention: Attending | None,
    ) -> None:
        self._model, self._batch = model, batch
        self._kept = hidden
        self._hidden = None if hidden is None else torch.empty_like(hidden)  # a pass overwrites its input, and made-up rows would grow beyond bounds
        self._attended = torch.zeros((batch.rows, spec.q_dim), dtype=dtype, device=at.device)
        # A replay runs no Python: whatever a piece leaves for what is launched between pieces must lie where it lay when it was captured.
        keys = torch.zeros((batch.rows, spec.kv_dim), dtype=dtype, device=at.device)
        self._qkv = (torch.zeros_like(self._attended), keys, torch.zeros_like(keys))
        pieces: list[Run] = []
        if attention is not None:
            pieces.append(lambda: self._all(attention))
        else:
            pieces += [self._first, *(self._next(layer) for layer in range(model.first + 1, model.last)), self._last]
        for piece in pieces:  # once as it is: what a first run loads or allocates must not be captured
            piece()
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
        self._first()
        for layer in range(self._model.first, self._model.last):
            attention(layer, *self._qkv, self._attended)
            if layer + 1 < self._model.last:
                self._next(layer + 1)()
        self._last()

    def _first(self) -> None:
        if self._hidden is not None and self._kept is not None:
            self._hidden.copy_(self._kept)
        self._stream = self._model.enter(self._batch, self._hidden)
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
